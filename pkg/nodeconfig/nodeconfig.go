// SPDX-License-Identifier: Apache-2.0

// Package nodeconfig tells the nodes of a Shoot which registry caches there are: it maps the provider status of the
// Extension to files and a systemd unit, and adds them to the OperatingSystemConfigs of the Shoot.
//
// The unit probes the caches from the node and has containerd use them as mirrors only while they answer. Nothing of it
// goes through criConfig.containerd.registries: what gardener-node-agent renders from these knows no dial_timeout, its
// probe runs once, and a cache that never answers would keep the whole Shoot from being reconciled.
package nodeconfig

import (
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/contract"
)

const (
	// UnitName is the systemd unit on every node that writes and withdraws the hosts.toml files.
	UnitName = "configure-containerd-registries.service"
	// ScriptPath is the program of the unit.
	ScriptPath = "/opt/bin/configure-containerd-registries"
	// HostsDirectory holds one directory per upstream, named host[:port] like the upstream, with the files hosts.toml
	// (what the unit puts into /etc/containerd/certs.d/<upstream> while the cache answers), endpoint (the URL of the
	// cache, and a newline) and, where the status has it, engine (of the cache, and a newline).
	HostsDirectory = "/var/lib/registry-cache/hosts"
	// CABundlePath holds the roots of the caches with https, in PEM.
	CABundlePath = "/var/lib/registry-cache/ca.pem"
	// TrustedPath is the unit's copy of them, which a hosts.toml names. It is there for as long as one does:
	// gardener-node-agent deletes and replaces CABundlePath in its own order, and containerd fails every pull of an
	// upstream whose hosts.toml names a file that is not there.
	TrustedPath = "/var/lib/registry-cache/trusted-ca.pem"
	// Marker is the first line, without the newline, of every hosts.toml that is ours. The unit never touches a file
	// without it. It is the same in all releases; a node may still have files of an older one.
	Marker = "# Managed by configure-containerd-registries.service of the registry cache. Without this line it is left alone."
)

// dialTimeout bounds what a pull loses for each request to a cache that has just gone: containerd forgets a dead host
// with every request and would wait for 30 s. containerd 2.0.7, 2.1 and later know the field, older ones ignore it. A
// pull of a small image makes seven requests one after the other, so this is 1.4 s. Within a cluster a connection takes a
// few milliseconds; if its first packet is lost, the next one comes after a second, which nobody should wait for either.
const dialTimeout = "200ms"

var (
	//go:embed configure-containerd-registries.sh
	script string
	//go:embed configure-containerd-registries.service
	unit string
)

// Config is what is added to an OperatingSystemConfig of purpose reconcile. The zero value adds nothing.
type Config struct {
	// Files are the script, the roots if a cache has https, and the files of each upstream, sorted by upstream.
	Files []extensionsv1alpha1.File
	// Units is the unit UnitName, restarted by gardener-node-agent when the script changes. The other files the unit
	// reads in each round, and a restart withdraws all caches for a moment.
	Units []extensionsv1alpha1.Unit
}

// maxBundle is the maximum size of the roots, in bytes: the unit reads no more of a file.
const maxBundle = 64 << 10

// Skipped is a cache without node configuration: nodes pull its upstream directly.
type Skipped struct {
	// Upstream is that of the provider status, which may be invalid.
	Upstream string
	// Reason states the invalid field and its rule. It contains no credential.
	Reason error
}

// New returns the configuration of a node for caches, independently of their order. It is empty without a valid cache.
// caBundle contains the roots, in PEM, by which caches with an https endpoint are verified; others need none.
//
// An invalid cache is skipped and does not affect the others: its upstream, endpoint or remote URL violates the rules of
// package contract, another valid cache has the same upstream, or its endpoint is https and caBundle is invalid.
func New(caches []v1alpha3.RegistryCacheStatus, caBundle string) (config Config, skipped []Skipped) {
	caches = slices.SortedStableFunc(slices.Values(caches), func(a, b v1alpha3.RegistryCacheStatus) int {
		return cmp.Or(
			strings.Compare(a.Upstream, b.Upstream), strings.Compare(a.Endpoint, b.Endpoint),
			strings.Compare(a.RemoteURL, b.RemoteURL), strings.Compare(a.Engine, b.Engine),
		)
	})
	bundleErr := checkBundle(caBundle)
	var roots []extensionsv1alpha1.File
	var files []extensionsv1alpha1.File
	last := "" // the last configured upstream
	for _, cache := range caches {
		cache, err := canonical(cache)
		switch {
		case err != nil:
		case cache.Upstream == last:
			err = errors.New("upstream: another cache has the same")
		case secure(cache) && bundleErr != nil:
			err = fmt.Errorf("CA bundle: %w", bundleErr)
		}
		if err != nil {
			skipped = append(skipped, Skipped{Upstream: cache.Upstream, Reason: err})
			continue
		}
		last = cache.Upstream
		if secure(cache) {
			roots = []extensionsv1alpha1.File{file(CABundlePath, 0o644, caBundle)}
		}
		directory := path.Join(HostsDirectory, cache.Upstream)
		files = append(files,
			file(path.Join(directory, "hosts.toml"), 0o644, hostsTOML(cache)),
			file(path.Join(directory, "endpoint"), 0o644, cache.Endpoint+"\n"),
		)
		if cache.Engine != "" {
			files = append(files, file(path.Join(directory, "engine"), 0o644, cache.Engine+"\n"))
		}
	}
	return assemble(roots, files), skipped
}

// assemble returns the configuration with the file of the roots, if there is one, and the files of the upstreams. It is
// empty without an upstream.
func assemble(roots, upstreams []extensionsv1alpha1.File) Config {
	if len(upstreams) == 0 {
		return Config{}
	}
	return Config{
		Files: slices.Concat([]extensionsv1alpha1.File{file(ScriptPath, 0o755, script)}, roots, upstreams),
		Units: []extensionsv1alpha1.Unit{{
			Name:      UnitName,
			Enable:    new(true),
			Command:   new(extensionsv1alpha1.CommandRestart),
			Content:   new(unit),
			FilePaths: []string{ScriptPath},
		}},
	}
}

// withPrevious returns c with the roots and the files of the upstreams in previous, if it has both. c contains neither.
func (c Config) withPrevious(previous Config, upstreams []string) Config {
	isRoots := func(f extensionsv1alpha1.File) bool { return f.Path == CABundlePath }
	ofUpstream := func(f extensionsv1alpha1.File) bool {
		directory, isHost := strings.CutPrefix(path.Dir(f.Path), HostsDirectory+"/")
		return isHost && slices.Contains(upstreams, directory)
	}
	roots, kept := filter(previous.Files, isRoots), filter(previous.Files, ofUpstream)
	if len(roots) == 0 || len(kept) == 0 {
		return c
	}
	all := filter(c.Files, func(f extensionsv1alpha1.File) bool { return strings.HasPrefix(f.Path, HostsDirectory+"/") })
	all = slices.SortedStableFunc(slices.Values(append(all, kept...)), func(a, b extensionsv1alpha1.File) int {
		return strings.Compare(path.Dir(a.Path), path.Dir(b.Path))
	})
	return assemble(roots, all)
}

func checkBundle(bundle string) error {
	if len(bundle) > maxBundle {
		return fmt.Errorf("must have at most %d bytes", maxBundle)
	}
	return contract.CheckCertificates(bundle)
}

// owns tells whether a file in an OperatingSystemConfig is from New.
func owns(f extensionsv1alpha1.File) bool {
	return f.Path == ScriptPath || f.Path == CABundlePath || strings.HasPrefix(f.Path, HostsDirectory+"/")
}

func ownsUnit(u extensionsv1alpha1.Unit) bool { return u.Name == UnitName }

// secure reports whether the endpoint of the cache is valid and has the scheme https.
func secure(cache v1alpha3.RegistryCacheStatus) bool {
	endpoint, err := contract.ParseEndpoint(cache.Endpoint)
	return err == nil && endpoint.Scheme == "https"
}

// The unit finds the server, the hosts and the roots in these lines by their beginning; see header and round in its script.
func hostsTOML(cache v1alpha3.RegistryCacheStatus) string {
	text := fmt.Sprintf(`%s
%s
[host.%q]
  capabilities = ["pull", "resolve"]
  dial_timeout = %q
`, Marker, server(cache.RemoteURL), cache.Endpoint, dialTimeout)
	if secure(cache) {
		text += fmt.Sprintf("  ca = %q\n", TrustedPath)
	}
	return text
}

// server returns the lines of a hosts.toml with the registry that nodes use without the cache. A path in the remote URL
// precedes the names of repositories. containerd would append "/v2" to it; with override_path, it appends the name of the
// repository only (documentation of hosts.toml).
func server(remoteURL string) string {
	remote, err := contract.ParseRemoteURL(remoteURL)
	if err != nil || remote.Path == "" {
		return fmt.Sprintf("server = %q\n", remoteURL)
	}
	base := remote.Scheme + "://" + remote.Host + strings.TrimSuffix(contract.BasePath, "/")
	return fmt.Sprintf("server = %q\noverride_path = true\n", base+remote.Path)
}

// canonical checks the fields of cache that become names and contents of files, and returns it with canonical URLs. The
// upstream becomes the name of a directory, and the URLs are placed between quotes of TOML: the grammars of package
// contract contain no character that is special there.
func canonical(cache v1alpha3.RegistryCacheStatus) (v1alpha3.RegistryCacheStatus, error) {
	if _, err := contract.ParseHost(cache.Upstream); err != nil {
		return cache, fmt.Errorf("upstream: %w", err)
	}
	endpoint, err := contract.ParseEndpoint(cache.Endpoint)
	if err != nil {
		return cache, fmt.Errorf("endpoint: %w", err)
	}
	remote, err := contract.ParseRemoteURL(cache.RemoteURL)
	if err != nil {
		return cache, fmt.Errorf("remoteURL: %w", err)
	}
	cache.Endpoint, cache.RemoteURL = endpoint.String(), remote.String()
	return cache, nil
}

func file(path string, permissions uint32, content string) extensionsv1alpha1.File {
	return extensionsv1alpha1.File{
		Path:        path,
		Permissions: &permissions,
		Content:     extensionsv1alpha1.FileContent{Inline: &extensionsv1alpha1.FileContentInline{Data: content}},
	}
}
