// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// fakeEngine is a container engine that knows images and containers by name only. $DIR/images lists the images, one a
// line, with the label after a space; $DIR/containers the containers; $DIR/calls what it was asked for.
const fakeEngine = `#!/bin/bash
echo "$1" "${@: -1}" >>"$DIR/calls"
case $1 in
image)
	grep -q "^${*: -1}\( \|$\)" "$DIR/images" || { echo "no such image" >&2; exit 125; }
	case $4 in
	'{{.Id}}') echo "sha256:of-${*: -1}" ;;
	*) sed -n "s#^${*: -1} \?##p" "$DIR/images" ;;
	esac ;;
pull)
	grep -q "^${*: -1}$" "$DIR/remote" || { echo "no route to the registry" >&2; exit 125; }
	echo "${@: -1}" >>"$DIR/images" ;;
ps) cat "$DIR/containers" ;;
run) echo build >>"$DIR/containers" ;;
rm) : >"$DIR/containers" ;;
exec)
	case $* in
	*config.toml) printf 'version = 2\nrestrict_oom_score_adj = false\n' ;;
	*tar*) tar --list >>"$DIR/copied" ;;
	*broken*) echo "the script fails" >&2; exit 1 ;;
	esac ;;
commit) echo "${@: -1} $(printf '%s\n' "$@" | sed -n 's/^LABEL .*=//p')" >>"$DIR/images" ;;
esac
`

type fakeHost struct {
	*builder
	dir string
}

func newFakeHost(t *testing.T, images, remote string) fakeHost {
	t.Helper()
	f := fakeHost{checkout(t), t.TempDir()}
	program := filepath.Join(f.dir, "engine")
	for name, content := range map[string]string{"images": images, "remote": remote, "containers": "", "calls": "", "engine": "#!/bin/sh\nDIR=" + f.dir + " exec bash -c \"$(cat " + f.dir + "/script)\" engine \"$@\"\n", "script": fakeEngine} {
		if err := os.WriteFile(filepath.Join(f.dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f.engine, f.progress = &host.Engine{Name: program}, workspace.NewProgress(io.Discard)
	return f
}

func (f fakeHost) read(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// published returns the reference of an image in a registry that has it.
func published(t *testing.T) string {
	t.Helper()
	const digest = "sha256:44e222ee2132dab25ff87301682f89eb82c7880ea3a1bf543bfe9708fd08d67d"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		w.Header().Set("Content-Length", "2")
		w.Header().Set("Docker-Content-Digest", digest)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://") + "/kindest/node@" + digest
}

func TestEnsureTakesWhatIsThere(t *testing.T) {
	t.Parallel()
	ref := published(t)
	// The tags follow from the inputs, which are alike in every test checkout.
	b := checkout(t)
	overlay := overlayHash(t, b)
	fromPublished, base := nodeTag(ref, overlay), repository+"node-base:"+baseHash(t, b)
	fromSource := nodeTag(base, overlay)
	for name, tc := range map[string]struct {
		images, remote, override, want string
		// made tells that the image is new.
		made bool
	}{
		"published before":              {images: fromPublished + "\n" + fromSource + "\n", want: fromPublished},
		"source before":                 {images: fromSource + "\n", remote: ref, want: fromSource},
		"source although published":     {images: fromPublished + "\n" + fromSource + "\n", override: Source, want: fromSource},
		"published can be pulled":       {remote: ref, want: fromPublished, made: true},
		"published was pulled":          {images: ref + "\n", want: fromPublished, made: true},
		"base from source":              {images: base + "\n", want: fromSource, made: true},
		"source asked, base there":      {images: base + "\n", remote: ref, override: Source, want: fromSource, made: true},
		"override with the files":       {images: "example/node:1 abc\n", override: "example/node:1", want: "example/node:1"},
		"override without the files":    {images: "example/node:2\n", override: "example/node:2", want: nodeTag("sha256:of-example/node:2", overlay), made: true},
		"override that must be pulled":  {remote: "example/node:3", override: "example/node:3", want: nodeTag("sha256:of-example/node:3", overlay), made: true},
		"override again, files of then": {images: "example/node:2\n" + nodeTag("sha256:of-example/node:2", overlay) + " x\n", override: "example/node:2", want: nodeTag("sha256:of-example/node:2", overlay)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeHost(t, tc.images, tc.remote)
			got, err := f.ensure(t.Context(), Options{Override: tc.override, Published: ref})
			if err != nil {
				t.Fatal(err)
			}
			if got != tc.want {
				t.Errorf("image %s, want %s; the engine was asked for:\n%s", got, tc.want, f.read(t, "calls"))
			}
			if made := strings.Contains(f.read(t, "calls"), "commit "+tc.want); made != tc.made {
				t.Errorf("made it: %t, want %t; the engine was asked for:\n%s", made, tc.made, f.read(t, "calls"))
			}
			if tc.made {
				if !strings.Contains(f.read(t, "images"), tc.want+" "+overlay+"\n") {
					t.Errorf("the image lacks the label %s:\n%s", overlay, f.read(t, "images"))
				}
				if want := "etc/guard.nft\nusr/sbin/guard\netc/containerd/config.toml\n"; f.read(t, "copied") != want {
					t.Errorf("copied %q, want %q", f.read(t, "copied"), want)
				}
			}
			if left := f.read(t, "containers"); left != "" {
				t.Errorf("the container is still there: %s", left)
			}
		})
	}
}

func TestEnsureNamesAnOverrideThatIsNotThere(t *testing.T) {
	t.Parallel()
	f := newFakeHost(t, "", "")
	_, err := f.ensure(t.Context(), Options{Override: "example/node:9"})
	if err == nil || !strings.Contains(err.Error(), "example/node:9") || !strings.Contains(err.Error(), "unset NODE_IMAGE") {
		t.Errorf("error %v, want the image's name and the way out", err)
	}
}

func TestABrokenScriptLeavesNeitherImageNorContainer(t *testing.T) {
	t.Parallel()
	f := newFakeHost(t, "example/node:1\n", "")
	// What an interrupted run has left is removed first.
	if err := os.WriteFile(filepath.Join(f.dir, "containers"), []byte("left\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, f.builder, nodeScript, "broken", 0o755)
	_, err := f.ensure(t.Context(), Options{Override: "example/node:1"})
	if err == nil || !strings.Contains(err.Error(), "node.sh") || !strings.Contains(err.Error(), "the script fails") {
		t.Errorf("error %v, want the script's name and message", err)
	}
	calls := f.read(t, "calls")
	if strings.Contains(calls, "commit") {
		t.Errorf("an image was made:\n%s", calls)
	}
	if rm, run := strings.Index(calls, "rm "), strings.Index(calls, "run "); rm < 0 || rm > run {
		t.Errorf("the container of the interrupted run was not removed first:\n%s", calls)
	}
	if left := f.read(t, "containers"); left != "" {
		t.Errorf("the container is still there: %s", left)
	}
}
