// SPDX-License-Identifier: Apache-2.0

// Package nodeconfig tells the nodes of a Shoot which registry caches there are: it maps the provider status of the
// Extension to files and a systemd unit, and adds them to the OperatingSystemConfigs of the Shoot.
//
// The unit probes the caches from the node and has containerd use them as mirrors only while they answer. Nothing of it
// goes through criConfig.containerd.registries: what gardener-node-agent renders from these knows no dial_timeout, its
// probe runs once, and a cache that never answers would keep the whole Shoot from being reconciled.
package nodeconfig

import (
	_ "embed"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"

	"github.com/registry-cache/extension/pkg/apis/cabundle"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
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

// New returns the configuration of a node for caches, in whichever order they are. It is empty if there are no caches.
// caBundle are the roots, in PEM, by which the caches with an https endpoint are verified; others need none.
//
// It is an error if an upstream is there twice or cannot be the name of a directory, if an endpoint or remote URL is not
// an http or https URL of a host, or if the roots are needed and caBundle is anything but certificates.
func New(caches []v1alpha3.RegistryCacheStatus, caBundle string) (Config, error) {
	if len(caches) == 0 {
		return Config{}, nil
	}
	caches = slices.SortedFunc(slices.Values(caches), func(a, b v1alpha3.RegistryCacheStatus) int {
		return strings.Compare(a.Upstream, b.Upstream)
	})
	for i := range caches {
		// A RegistryConfig may have it with a slash at the end.
		caches[i].RemoteURL = strings.TrimSuffix(caches[i].RemoteURL, "/")
	}
	files := []extensionsv1alpha1.File{file(ScriptPath, 0o755, script)}
	if slices.ContainsFunc(caches, secure) {
		if err := cabundle.Validate(caBundle); err != nil {
			return Config{}, fmt.Errorf("configuring nodes for caches with https: CA bundle: %w", err)
		}
		files = append(files, file(CABundlePath, 0o644, caBundle))
	}
	for i, cache := range caches {
		if err := check(cache); err != nil {
			return Config{}, err
		}
		if i > 0 && caches[i-1].Upstream == cache.Upstream {
			return Config{}, fmt.Errorf("configuring nodes for upstream %s: it has two caches", cache.Upstream)
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
	return Config{
		Files: files,
		Units: []extensionsv1alpha1.Unit{{
			Name:      UnitName,
			Enable:    new(true),
			Command:   new(extensionsv1alpha1.CommandRestart),
			Content:   new(unit),
			FilePaths: []string{ScriptPath},
		}},
	}, nil
}

// owns tells whether a file in an OperatingSystemConfig is from New.
func owns(f extensionsv1alpha1.File) bool {
	return f.Path == ScriptPath || f.Path == CABundlePath || strings.HasPrefix(f.Path, HostsDirectory+"/")
}

func ownsUnit(u extensionsv1alpha1.Unit) bool { return u.Name == UnitName }

// secure tells whether the cache speaks https.
func secure(cache v1alpha3.RegistryCacheStatus) bool {
	return strings.HasPrefix(cache.Endpoint, "https://")
}

// The unit finds the server, the hosts and the roots in these lines by their beginning; see header and round in its script.
func hostsTOML(cache v1alpha3.RegistryCacheStatus) string {
	text := fmt.Sprintf(`%s
server = %q

[host.%q]
  capabilities = ["pull", "resolve"]
  dial_timeout = %q
`, Marker, cache.RemoteURL, cache.Endpoint, dialTimeout)
	if secure(cache) {
		text += fmt.Sprintf("  ca = %q\n", TrustedPath)
	}
	return text
}

// What a status may hold here is narrower than what net/url accepts: the upstream becomes the name of a directory, and
// the URLs go between quotes of TOML.
var (
	hostPort = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.-]*(:[0-9]{1,5})?$`)
	hostURL  = regexp.MustCompile(`^https?://([0-9A-Za-z][0-9A-Za-z.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)
)

func check(cache v1alpha3.RegistryCacheStatus) error {
	if !hostPort.MatchString(cache.Upstream) {
		return fmt.Errorf("configuring nodes for upstream %q: upstream must be host[:port]", cache.Upstream)
	}
	if !hostURL.MatchString(cache.Endpoint) {
		return fmt.Errorf("configuring nodes for upstream %s: endpoint must be http[s]://host[:port] without a path", cache.Upstream)
	}
	if !hostURL.MatchString(cache.RemoteURL) {
		return fmt.Errorf("configuring nodes for upstream %s: remoteURL must be http[s]://host[:port] without a path", cache.Upstream)
	}
	return nil
}

func file(path string, permissions uint32, content string) extensionsv1alpha1.File {
	return extensionsv1alpha1.File{
		Path:        path,
		Permissions: &permissions,
		Content:     extensionsv1alpha1.FileContent{Inline: &extensionsv1alpha1.FileContentInline{Data: content}},
	}
}
