// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the files of testdata")

const minimal = "upstream: {host: docker.io, remoteURL: https://registry-1.docker.io}\n"

func TestParseDefaults(t *testing.T) {
	t.Parallel()
	got, err := Parse([]byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Upstream:          Upstream{Host: "docker.io", RemoteURL: "https://registry-1.docker.io"},
		Listen:            Listen{Address: ":5000"},
		Debug:             Debug{Address: ":5001"},
		Storage:           Storage{Root: "/var/lib/registry", HighWatermark: 90, LowWatermark: 80},
		GarbageCollection: GarbageCollection{TTL: Duration(168 * time.Hour)},
		Tags:              Tags{RevalidateAfter: Duration(10 * time.Second), MaxStale: Duration(24 * time.Hour)},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestParseKeepsZeros(t *testing.T) {
	t.Parallel()
	got, err := Parse([]byte(minimal + "garbageCollection: {ttl: 0s}\ntags: {revalidateAfter: 0s, maxStale: 0s}\nstorage: {lowWatermark: 0}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got.GarbageCollection.TTL != 0 || got.Tags.RevalidateAfter != 0 || got.Tags.MaxStale != 0 || got.Storage.LowWatermark != 0 {
		t.Errorf("zeros were replaced by defaults: %+v", got)
	}
	if got.Storage.HighWatermark != 90 {
		t.Errorf("high watermark %d beside a set low watermark, want the default", got.Storage.HighWatermark)
	}
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, document, want string }{
		{"unknown field", minimal + "garbageCollector: {}", `decoding configuration: unknown field "garbageCollector"`},
		{"upper case", minimal + "Listen: {address: \":1\"}", `decoding configuration: unknown field "Listen"`},
		{"upper case further down", minimal + "listen: {Address: \":1\"}", `decoding configuration: unknown field "listen.Address"`},
		{"repeated field", minimal + "tags: {}\ntags: {}\n", `already set in map`},
		{"duration without unit", minimal + "tags: {revalidateAfter: 10}", `duration 10: write a string with a unit, such as "168h"`},
		{"duration in days", minimal + "tags: {revalidateAfter: 7d}", `duration "7d": write a number with a unit, such as "168h"`},
		{"smallest integer", minimal + "storage: {lowWatermark: -9223372036854775808}", `storage.lowWatermark: -9223372036854775808 must be a percentage`},
		{"not a mapping", "- a", "decoding configuration"},
	} {
		_, err := Parse([]byte(test.document))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", test.name, err, test.want)
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no host", func(c *Config) { c.Upstream.Host = "" }, "upstream.host: must be set to the registry of the image references, such as docker.io"},
		{"host with scheme", func(c *Config) { c.Upstream.Host = "https://docker.io" }, `upstream.host: "https://docker.io" must be host[:port], for example docker.io, without a scheme; write "docker.io"`},
		{"host with path", func(c *Config) { c.Upstream.Host = "docker.io/library" }, `upstream.host: "docker.io/library" must be host[:port], for example docker.io, without a path; write "docker.io"`},
		{"host with empty port", func(c *Config) { c.Upstream.Host = "docker.io:" }, `upstream.host: "docker.io:" must be host[:port], for example docker.io or registry.example.com:5000`},
		{"host with IPv6 address", func(c *Config) { c.Upstream.Host = "[fd00::1]:5000" }, `upstream.host: "[fd00::1]:5000" must be host[:port], for example registry.example.com:5000, with a DNS name instead of an IPv6 address, also in image references; only remoteURL may have an IPv6 address`},
		{"no URL", func(c *Config) { c.Upstream.RemoteURL = "" }, "upstream.remoteURL: must be set to the URL of the registry, such as https://registry-1.docker.io"},
		{"URL without scheme", func(c *Config) { c.Upstream.RemoteURL = "registry-1.docker.io" }, `upstream.remoteURL: "registry-1.docker.io" must be http or https with a host and an optional port, for example https://registry.example.com`},
		{"URL with password", func(c *Config) { c.Upstream.RemoteURL = "https://user:secret@a" }, "upstream.remoteURL: must be http or https with a host and an optional port, for example https://registry.example.com, without user name or password"},
		{"URL with path", func(c *Config) { c.Upstream.RemoteURL = "https://a/v2/" }, `upstream.remoteURL: "https://a/v2/" must have no path, or the beginning of a repository name in lower case of at most 128 bytes, without v2, for example https://registry.example.com/project`},
		{"URL with query", func(c *Config) { c.Upstream.RemoteURL = "https://a?b" }, "upstream.remoteURL: must be http or https with a host and an optional port, for example https://registry.example.com, without query or fragment"},
		{"address without port", func(c *Config) { c.Listen.Address = "localhost" }, `listen.address: "localhost" must be host:port, such as ":5000"`},
		{"port too large", func(c *Config) { c.Debug.Address = ":65536" }, `debug.address: ":65536" must end with a port from 0 to 65535`},
		{"key alone", func(c *Config) { c.Listen.TLS.KeyFile = "/k" }, "listen.tls.certFile: must be set, because keyFile is"},
		{"certificate alone", func(c *Config) { c.Listen.TLS.CertFile = "/c" }, "listen.tls.keyFile: must be set, because certFile is"},
		{"relative root", func(c *Config) { c.Storage.Root = "registry" }, `storage.root: "registry" must be an absolute path`},
		{"high watermark", func(c *Config) { c.Storage.HighWatermark = 101 }, "storage.highWatermark: 101 must be a percentage of the volume from 1 to 100, for example 90"},
		{"low above high", func(c *Config) { c.Storage.LowWatermark = 90 }, "storage.lowWatermark: 90 must be a percentage of the volume from 0 to 89, below highWatermark, which is 90"},
		{"header timeout", func(c *Config) { c.Upstream.HeaderTimeout = Duration(28 * time.Second) }, "upstream.headerTimeout: 28s must be more than 0s and at most 27s, for example 25s"},
		{"negative header timeout", func(c *Config) { c.Upstream.HeaderTimeout = -1 }, "upstream.headerTimeout: -1ns must be more than 0s and at most 27s, for example 25s"},
		{"ttl", func(c *Config) { c.GarbageCollection.TTL = -1 }, "garbageCollection.ttl: -1ns must not be negative, for example 168h; 0s means that nothing is ever deleted"},
		{"maxStale", func(c *Config) { c.Tags.MaxStale = -1 }, "tags.maxStale: must not be negative, for example 24h; 0s disables stale answers"},
		{"two at once", func(c *Config) { c.Upstream.Host = ""; c.Tags.RevalidateAfter = -1 }, "upstream.host: must be set to the registry of the image references, such as docker.io\ntags.revalidateAfter: must not be negative"},
	} {
		cfg, err := Parse([]byte(minimal))
		if err != nil {
			t.Fatal(err)
		}
		test.change(&cfg)
		err = cfg.Validate()
		if err == nil || err.Error() != test.want {
			t.Errorf("%s: got %v, want %s", test.name, err, test.want)
		}
		if _, ok := errors.AsType[*FieldError](err); !ok {
			t.Errorf("%s: %T is no FieldError", test.name, err)
		}
		if _, err := cfg.Marshal(); err == nil {
			t.Errorf("%s: Marshal accepted it", test.name)
		}
	}
}

func TestMarshal(t *testing.T) {
	t.Parallel()
	full := Default()
	full.Upstream = Upstream{Host: "registry.example.com:5000", RemoteURL: "https://[2001:db8::1]:5000", CAFile: "/ca.crt", CredentialsDir: "/credentials", ProxyCredentialsDir: "/proxy"}
	full.Listen.TLS = TLS{CertFile: "/tls.crt", KeyFile: "/tls.key"}
	full.GarbageCollection.TTL = 0
	got, err := full.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "full.yaml")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	loaded, err := Load(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(full, loaded); diff != "" {
		t.Errorf("after marshalling and loading: -want +got\n%s", diff)
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if _, err := Load(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("upstream: {}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("invalid file: %v", err)
	}
}
