// SPDX-License-Identifier: Apache-2.0

// Package config is the configuration file of the cache server: one YAML document, decoded strictly.
package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	strictjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/contract"
)

// maxFileSize is the maximum size of a configuration file, in bytes. A full configuration has less than one KiB.
const maxFileSize = 1 << 20

// Config is the whole document. Start from Default, because zero values are not the defaults.
type Config struct {
	Upstream          Upstream          `json:"upstream"`
	Listen            Listen            `json:"listen"`
	Debug             Debug             `json:"debug"`
	Storage           Storage           `json:"storage"`
	GarbageCollection GarbageCollection `json:"garbageCollection"`
	Tags              Tags              `json:"tags"`
}

// Upstream is the registry that is cached.
type Upstream struct {
	// Host is the registry host of image references, "docker.io" or "registry.example.com:5000", see
	// contract.ParseHost. Requests with another value in their parameter ns are rejected. Required.
	Host string `json:"host"`
	// RemoteURL is the URL of the registry: scheme, host, port and path, such as "https://registry-1.docker.io" or
	// "https://harbor.example.com/dockerhub", see contract.ParseRemoteURL. The path precedes the names of repositories. Parse
	// and Marshal replace the URL by its canonical form. Required.
	RemoteURL string `json:"remoteURL"`
	// CAFile is a PEM file of certificate authorities that are trusted beside the system's, for RemoteURL and for
	// where it redirects to. Empty means none.
	CAFile string `json:"caFile,omitempty"`
	// CredentialsDir is a folder with the files "username" and "password". Empty means anonymous.
	CredentialsDir string `json:"credentialsDir,omitempty"`
	// ProxyCredentialsDir is a folder with the files "proxy-username" and "proxy-password": the credentials for the proxies
	// in the environment variables HTTP_PROXY and HTTPS_PROXY, for HTTP Basic authentication. They are read again after a
	// change. Empty means those in the URLs of the variables.
	ProxyCredentialsDir string `json:"proxyCredentialsDir,omitempty"`
	// HeaderTimeout is the time in which the upstream must send the header of a response, including connecting and
	// authenticating, from more than 0s to 27s: containerd waits 30 s for the cache. A longer time helps upstreams that are
	// slow, for example because they are caches themselves. A shorter time helps if the upstream often accepts connections
	// without responding. It does not delay the detection of an unreachable upstream: connecting has a limit of 5 s.
	// Default 25s.
	HeaderTimeout Duration `json:"headerTimeout,omitzero"`
}

// Listen is where the registry API is served.
type Listen struct {
	// Address is "host:port"; an empty host means all addresses, port 0 a free one. Default ":5000".
	Address string `json:"address"`
	// TLS makes it serve https where both of its files are set.
	TLS TLS `json:"tls,omitzero"`
}

// TLS names PEM files; both or neither must be set.
type TLS struct {
	CertFile string `json:"certFile,omitempty"`
	KeyFile  string `json:"keyFile,omitempty"`
}

// Debug is where health, metrics and the states of the upstream and of the volume are served, over http.
type Debug struct {
	// Address is as in Listen. Default ":5001".
	Address string `json:"address"`
	// PProf serves profiles of the process on /debug/pprof/, to every client that reaches the address. Default false.
	PProf bool `json:"pprof,omitempty"`
}

// Storage is the volume.
type Storage struct {
	// Root is the absolute path of the folder that holds everything the server writes. Default "/var/lib/registry".
	Root string `json:"root"`
	// Size is the number of bytes that the content of the cache may use, for example "20Gi": the size of the claim. It limits
	// the cache on a file system that is larger than the claim or shared with other users. The smaller one of Size and the
	// file system applies. Default 0: the file system only. The server reads a changed value without a restart.
	Size Bytes `json:"size,omitzero"`
	// HighWatermark is the used share of the volume, in percent, at which eviction starts. Default 90.
	HighWatermark int `json:"highWatermark"`
	// LowWatermark is the used share of the volume, in percent, at which eviction ends. Default: 10 less than
	// HighWatermark, at least 0.
	LowWatermark int `json:"lowWatermark"`
}

// GarbageCollection defines when unused content is evicted.
type GarbageCollection struct {
	// TTL is the time since its last use after which an object is deleted. 0s means that nothing is ever deleted.
	// Default 168h.
	TTL Duration `json:"ttl"`
}

// Tags defines how long answers of the upstream about tags and lists are used.
type Tags struct {
	// RevalidateAfter is the time for which the upstream's answer about a tag is used for all clients. 0s means that
	// each request contacts the upstream. Default 10s. If the upstream answers 429 or 503 with Retry-After, the cache does
	// not request that tag again before, for at most 5 min, if it has an answer of its own.
	RevalidateAfter Duration `json:"revalidateAfter"`
	// MaxStale is the time since the upstream's last answer about a tag for which the cache uses this answer while the
	// upstream fails: connection errors, timeouts, 408, 429 and 5xx. 0s means that the cache returns the error instead.
	// Default 24h.
	MaxStale Duration `json:"maxStale"`
}

// Duration is written as Go's time.ParseDuration reads it, such as "168h".
type Duration time.Duration

// MarshalJSON returns the duration as a JSON string.
func (d Duration) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(d).String())
}

// UnmarshalJSON reads a JSON string; a number has no unit and is refused.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("duration %s: write a string with a unit, such as \"168h\"", data)
	}
	parsed, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("duration %q: write a number with a unit, such as \"168h\"", s)
	}
	*d = Duration(parsed)
	return nil
}

// Default returns the configuration of an empty document. It lacks the required fields.
func Default() Config {
	return Config{
		Listen: Listen{Address: anyAddress(contract.RegistryPort)},
		Debug:  Debug{Address: anyAddress(contract.DebugPort)},
		Storage: Storage{
			Root:          "/var/lib/registry",
			HighWatermark: contract.DefaultHighWatermark,
			LowWatermark:  contract.DefaultLowWatermark(contract.DefaultHighWatermark),
		},
		GarbageCollection: GarbageCollection{TTL: Duration(contract.DefaultTTL)},
		Tags:              Tags{RevalidateAfter: Duration(10 * time.Second), MaxStale: Duration(24 * time.Hour)},
	}
}

// anyAddress is the port on all addresses.
func anyAddress(port int) string { return net.JoinHostPort("", strconv.Itoa(port)) }

// Limits returns the limits for the eviction of content.
func (c Config) Limits() evict.Limits {
	return evict.Limits{
		TTL:           time.Duration(c.GarbageCollection.TTL),
		HighWatermark: c.Storage.HighWatermark,
		LowWatermark:  c.Storage.LowWatermark,
		Size:          int64(c.Storage.Size),
	}
}

// Parse decodes a document, sets defaults, validates, and brings the remote URL into its canonical form. An unknown or
// repeated field is an error; field names are case-sensitive.
func Parse(data []byte) (Config, error) {
	cfg := Default()
	document, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return Config{}, fmt.Errorf("decoding configuration: %w", err)
	}
	unknown, err := strictjson.UnmarshalStrict(document, &cfg)
	if err := errors.Join(append(unknown, err)...); err != nil {
		return Config{}, fmt.Errorf("decoding configuration: %w", err)
	}
	// The default of the low watermark depends on the high one.
	var given struct {
		Storage struct {
			LowWatermark *int `json:"lowWatermark"`
		} `json:"storage"`
	}
	if err := json.Unmarshal(document, &given); err != nil {
		return Config{}, fmt.Errorf("decoding configuration: %w", err)
	}
	if given.Storage.LowWatermark == nil {
		cfg.Storage.LowWatermark = contract.DefaultLowWatermark(cfg.Storage.HighWatermark)
	}
	return cfg.canonical()
}

// canonical validates c and returns it with its remote URL in canonical form.
func (c Config) canonical() (Config, error) {
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("validating configuration: %w", err)
	}
	remote, err := contract.ParseRemoteURL(c.Upstream.RemoteURL)
	if err != nil {
		return Config{}, fmt.Errorf("validating configuration: %w", err)
	}
	c.Upstream.RemoteURL = remote.String()
	return c, nil
}

// Load parses the file under path.
func Load(path string) (Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Config{}, fmt.Errorf("reading configuration: %w", err)
	}
	if info.Size() > maxFileSize {
		return Config{}, fmt.Errorf("reading configuration %s: it has %d bytes, %d are allowed", path, info.Size(), maxFileSize)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("reading configuration: %w", err)
	}
	cfg, err := Parse(data)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return cfg, nil
}

// Marshal returns c as a document that Parse reads. Equal configurations give equal bytes.
func (c Config) Marshal() ([]byte, error) {
	c, err := c.canonical()
	if err != nil {
		return nil, err
	}
	return yaml.Marshal(c)
}
