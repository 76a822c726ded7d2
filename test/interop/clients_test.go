// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// client is a program that pulls images.
type client interface {
	// pull pulls a reference as a client that has pulled nothing before. dir is an empty directory for all files of the
	// client. The result describes the content that the client has received and verified, in a form that is equal for equal
	// content: digests, mostly.
	pull(ctx context.Context, from registry, ref reference, dir string) ([]string, error)
}

// namedClient is a client with its name in the results.
type namedClient struct {
	name    string
	version string
	// chartsOnly is true for a client that can pull nothing but Helm charts.
	chartsOnly bool
	client
}

// references returns those references that the client can pull.
func (c namedClient) references(all []reference) []reference {
	if !c.chartsOnly {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(r reference) bool { return r.chart == "" })
}

// clients returns all clients. The servers and sessions that they need must be running.
func (s *suite) clients() []namedClient {
	all := []namedClient{
		{name: "crane", client: &command{s: s, name: "crane", args: craneArgs}},
		{name: "skopeo", client: &command{s: s, name: "skopeo", args: skopeoArgs, files: map[string]string{"policy.json": insecurePolicy}}},
		{name: "podman", client: podman{s}},
		{name: "regctl", client: &command{s: s, name: "regctl", args: regctlArgs}},
		{name: "oras", client: &command{s: s, name: "oras", args: orasArgs}},
		{name: "helm", client: &command{s: s, name: "helm", args: helmArgs}, chartsOnly: true},
		{name: "containerd 1.6", client: s.containerd16, version: s.programs["containerd"].version},
	}
	for i := range all[:len(all)-1] {
		all[i].version = s.programs[all[i].name].version
	}
	for i, session := range s.sessions {
		version := strings.TrimPrefix(session.Containerd, "v")
		all = append(all, namedClient{name: containerdLines()[i], client: containerdSession{session}, version: version})
	}
	return all
}

// insecurePolicy accepts images without signatures (containers-policy.json).
const insecurePolicy = `{"default": [{"type": "insecureAcceptAnything"}]}`

// command is a client that writes the pulled content as files, for example as an OCI layout.
type command struct {
	s    *suite
	name string
	// args returns the arguments. The client may write any files below the existing directory output; credentials are in the
	// file logins, in the format of Docker's configuration.
	args func(from registry, ref reference, dir, output, logins string) []string
	// files are additional files in dir.
	files map[string]string
}

func (c *command) pull(ctx context.Context, from registry, ref reference, dir string) ([]string, error) {
	logins, err := from.dockerConfig(dir)
	if err != nil {
		return nil, err
	}
	if err := writeFiles(dir, c.files); err != nil {
		return nil, err
	}
	output := filepath.Join(dir, "output")
	if err := os.Mkdir(output, 0o700); err != nil {
		return nil, err
	}
	if _, err := run(ctx, from.environment(dir), c.s.programs[c.name].path, c.args(from, ref, dir, output, logins)...); err != nil {
		return nil, err
	}
	return contentOf(output, c.s.known)
}

func craneArgs(from registry, ref reference, _, output, _ string) []string {
	return []string{"pull", "--format=oci", from.address + "/" + ref.path, output}
}

// skopeoArgs copies to the transport "dir", which accepts all types of manifests.
func skopeoArgs(from registry, ref reference, dir, output, logins string) []string {
	return []string{
		"--policy", filepath.Join(dir, "policy.json"), "copy", "--quiet", "--all", "--preserve-digests", "--authfile", logins,
		fmt.Sprintf("--src-tls-verify=%t", from.authority != nil), "docker://" + from.address + "/" + ref.path, "dir:" + output,
	}
}

func regctlArgs(from registry, ref reference, _, output, _ string) []string {
	tls := "disabled"
	if from.authority != nil {
		tls = "enabled"
	}
	return []string{
		"--host", "reg=" + from.address + ",tls=" + tls, "image", "copy", "--referrers", "--digest-tags",
		from.address + "/" + ref.path, "ocidir://" + output + ":copy",
	}
}

func orasArgs(from registry, ref reference, _, output, logins string) []string {
	return []string{
		"copy", "--recursive", "--no-tty", "--from-registry-config", logins, fmt.Sprintf("--from-plain-http=%t", from.authority == nil),
		from.address + "/" + ref.path, "--to-oci-layout", output + ":copy",
	}
}

func helmArgs(from registry, ref reference, _, output, logins string) []string {
	args := []string{"pull", "oci://" + from.address + "/" + ref.repository, "--version", ref.version, "--destination", output, "--registry-config", logins}
	if from.authority == nil {
		return append(args, "--plain-http")
	}
	return append(args, "--ca-file", from.authority.caFile)
}

// nameWithDigest matches names of files that contain their digest: those of an OCI layout and those of skopeo's transport "dir".
var nameWithDigest = regexp.MustCompile(`^([0-9a-f]{64})(\.manifest\.json)?$`)

// contentOf returns the sorted digests of all files below dir that are in known. Other files contain the client's own
// metadata. A file whose name is not the digest of its content is an error.
func contentOf(dir string, known map[string]bool) ([]string, error) {
	var digests []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		hex, err := sha256Of(path)
		if err != nil {
			return err
		}
		if m := nameWithDigest.FindStringSubmatch(entry.Name()); m != nil && m[1] != hex {
			return fmt.Errorf("file %s has the digest sha256:%s", entry.Name(), hex)
		}
		if digest := "sha256:" + hex; known[digest] {
			digests = append(digests, digest)
		}
		return nil
	})
	slices.Sort(digests)
	return slices.Compact(digests), err
}

func sha256Of(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// podman pulls imageHost with a configuration that replaces it by the address of the registry.
type podman struct{ s *suite }

func (p podman) pull(ctx context.Context, from registry, ref reference, dir string) (_ []string, err error) {
	logins, err := from.dockerConfig(dir)
	if err != nil {
		return nil, err
	}
	err = writeFiles(dir, map[string]string{
		"policy.json": insecurePolicy,
		"registries.conf": fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = %t\n",
			imageHost, from.address, from.authority == nil),
		"storage.conf": fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n", filepath.Join(dir, "storage"), filepath.Join(dir, "run")),
		// Locks in files are not shared with other podman processes of this machine.
		"containers.conf": fmt.Sprintf("[network]\nnetwork_config_dir = %q\n[engine]\nlock_type = \"file\"\nevents_logger = \"none\"\ncgroup_manager = \"cgroupfs\"\nstatic_dir = %q\ntmp_dir = %q\nvolume_path = %q\n",
			filepath.Join(dir, "networks"), filepath.Join(dir, "libpod"), filepath.Join(dir, "libpod-run"), filepath.Join(dir, "volumes")),
	})
	if err != nil {
		return nil, err
	}
	env := append(from.environment(dir),
		"CONTAINERS_REGISTRIES_CONF="+filepath.Join(dir, "registries.conf"),
		"CONTAINERS_STORAGE_CONF="+filepath.Join(dir, "storage.conf"),
		"CONTAINERS_CONF="+filepath.Join(dir, "containers.conf"))
	path := p.s.programs["podman"].path
	_, err = run(ctx, env, path, "pull", "--quiet", "--signature-policy", filepath.Join(dir, "policy.json"), "--authfile", logins, imageHost+"/"+ref.path)
	if err != nil {
		return nil, err
	}
	output, err := run(ctx, env, path, "image", "inspect", imageHost+"/"+ref.path)
	if err != nil {
		return nil, err
	}
	return inspectedContent(output)
}

// inspectedContent returns the digests in the output of "podman image inspect": of index, manifest, config and uncompressed
// layers. podman verifies all of them.
func inspectedContent(output []byte) ([]string, error) {
	var images []struct {
		ID          string `json:"Id"`
		RepoDigests []string
		RootFS      struct{ Layers []string }
	}
	if err := json.Unmarshal(output, &images); err != nil {
		return nil, fmt.Errorf("reading the output of podman: %w", err)
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("podman has %d images, want one", len(images))
	}
	content := append([]string{"sha256:" + images[0].ID}, images[0].RootFS.Layers...)
	for _, reference := range images[0].RepoDigests {
		_, digest, ok := strings.Cut(reference, "@")
		if !ok {
			return nil, errors.New("podman reports a reference without a digest: " + reference)
		}
		content = append(content, digest)
	}
	slices.Sort(content)
	return slices.Compact(content), nil
}

func TestContentOf(t *testing.T) {
	t.Parallel()
	const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	known := map[string]bool{"sha256:" + empty: true}
	for name, tc := range map[string]struct {
		files map[string]string
		want  []string
		fails bool
	}{
		"OCI layout":       {files: map[string]string{"oci-layout": "{}", "blobs/sha256/" + empty: ""}, want: []string{"sha256:" + empty}},
		"skopeo's dir":     {files: map[string]string{"version": "1", "manifest.json": "", empty + ".manifest.json": ""}, want: []string{"sha256:" + empty}},
		"unknown content":  {files: map[string]string{"index.json": "{}"}},
		"corrupt content":  {files: map[string]string{"blobs/sha256/" + empty: "x"}, fails: true},
		"corrupt manifest": {files: map[string]string{empty + ".manifest.json": "x"}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := writeFiles(dir, tc.files); err != nil {
				t.Fatal(err)
			}
			got, err := contentOf(dir, known)
			if (err != nil) != tc.fails || err == nil && !slices.Equal(got, tc.want) {
				t.Errorf("got %v, %v, want %v, fails = %t", got, err, tc.want, tc.fails)
			}
		})
	}
}
