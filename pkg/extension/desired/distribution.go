// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/pkg/contract"
)

// Where the images of the distribution project look for their configuration.
const (
	distributionDir = "/etc/distribution"
	distributionKey = "config.yml"
)

// distributionConfig is the part that is used of the configuration of the distribution project's registry
// (configuration/configuration.go in github.com/distribution/distribution/v3).
type distributionConfig struct {
	Version string              `json:"version"`
	Log     distributionLog     `json:"log"`
	Storage distributionStorage `json:"storage"`
	HTTP    distributionHTTP    `json:"http"`
	Health  distributionHealth  `json:"health"`
	Proxy   distributionProxy   `json:"proxy"`
}

type distributionLog struct {
	Fields map[string]string `json:"fields"`
}

type distributionStorage struct {
	Delete     distributionSwitch     `json:"delete"`
	Filesystem distributionFilesystem `json:"filesystem"`
	Tag        distributionTag        `json:"tag"`
	// No cache.blobdescriptor: with it a blob that was deleted while another repository has it is answered with 200 and
	// no bytes (distribution#2367).
}

type distributionSwitch struct {
	Enabled bool `json:"enabled"`
}

type distributionFilesystem struct {
	RootDirectory string `json:"rootdirectory"`
}

type distributionTag struct {
	ConcurrencyLimit int `json:"concurrencylimit"`
}

type distributionHTTP struct {
	Addr         string              `json:"addr"`
	DrainTimeout metav1.Duration     `json:"draintimeout"`
	Headers      map[string][]string `json:"headers"`
	// TLS is left out without a certificate.
	TLS   *distributionTLS  `json:"tls,omitempty"`
	Debug distributionDebug `json:"debug"`
}

// distributionTLS are paths of PEM files. The registry reads them when it starts.
type distributionTLS struct {
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
}

type distributionDebug struct {
	Addr       string                 `json:"addr"`
	Prometheus distributionPrometheus `json:"prometheus"`
}

type distributionPrometheus struct {
	Enabled bool   `json:"enabled"`
	Path    string `json:"path"`
}

type distributionHealth struct {
	StorageDriver distributionStorageCheck `json:"storagedriver"`
}

type distributionStorageCheck struct {
	Enabled   bool            `json:"enabled"`
	Interval  metav1.Duration `json:"interval"`
	Threshold int             `json:"threshold"`
}

type distributionProxy struct {
	RemoteURL string `json:"remoteurl"`
	Username  string `json:"username,omitempty"`
	Password  string `json:"password,omitempty"`
	// TTL of 0 means that nothing is ever deleted, also for the registry.
	TTL metav1.Duration `json:"ttl"`
}

// distribution is the stock registry of the distribution project. It knows no watermarks, and reads everything only when
// it starts: its checksum covers all files, so that a rotation of credentials or roots, and a new certificate, restarts the pod.
func distribution(cache v1alpha3.RegistryCache, size int64, secrets Secrets, options Options) (engine, error) {
	// What our server would refuse is wrong for this one, too.
	if _, err := registryCache(cache, size, secrets, options); err != nil {
		return engine{}, err
	}
	if remote, err := contract.ParseRemoteURL(*cache.RemoteURL); err == nil && remote.Path != "" {
		// It would request <path>/v2/<repository> instead of /v2/<path>/<repository>.
		return engine{}, fmt.Errorf("remoteURL %q: engine distribution does not support a path", remote)
	}
	server := distributionConfig{
		Version: "0.1",
		Log:     distributionLog{Fields: map[string]string{"service": "registry"}},
		Storage: distributionStorage{
			Delete:     distributionSwitch{Enabled: true},
			Filesystem: distributionFilesystem{RootDirectory: config.Default().Storage.Root},
			Tag:        distributionTag{ConcurrencyLimit: 5},
		},
		HTTP: distributionHTTP{
			Addr: net.JoinHostPort("", strconv.Itoa(contract.RegistryPort)),
			// Less than the 30 s that Kubernetes gives a pod to end.
			DrainTimeout: metav1.Duration{Duration: 25 * time.Second},
			Headers:      map[string][]string{"X-Content-Type-Options": {"nosniff"}},
			Debug: distributionDebug{
				Addr:       net.JoinHostPort("", strconv.Itoa(contract.DebugPort)),
				Prometheus: distributionPrometheus{Enabled: true, Path: contract.MetricsPath},
			},
		},
		Health: distributionHealth{StorageDriver: distributionStorageCheck{Enabled: true, Interval: metav1.Duration{Duration: 10 * time.Second}, Threshold: 3}},
		Proxy:  distributionProxy{RemoteURL: *cache.RemoteURL, TTL: *cache.GarbageCollection.TTL},
	}
	if TLS(cache) {
		server.HTTP.TLS = &distributionTLS{Certificate: serverTLS().CertFile, Key: serverTLS().KeyFile}
	}
	files := map[string][]byte{}
	// Without a trace exporter, it would look for one on localhost.
	environment := []corev1.EnvVar{{Name: "OTEL_TRACES_EXPORTER", Value: "none"}}
	if bundle := joinBundles(options.CABundle, secrets.CABundle); bundle != "" {
		files[caBundleKey] = []byte(bundle)
		// Go reads the public roots from a file of the image (/etc/ssl/certs/ca-certificates.crt), and beside them all
		// certificates in the files of this folder. SSL_CERT_FILE would replace the public ones.
		environment = append(environment, corev1.EnvVar{Name: "SSL_CERT_DIR", Value: distributionDir})
	}
	if credentials := secrets.Credentials; credentials != nil {
		// Environment variables would be parsed as YAML, in which a password may be a comment.
		server.Proxy.Username, server.Proxy.Password = credentials.Username, credentials.Password
	}
	proxyURLs, err := addProxyURLs(files, cache.Proxy, secrets.ProxyCredentials)
	if err != nil {
		return engine{}, err
	}
	configuration, err := yaml.Marshal(server)
	if err != nil {
		return engine{}, fmt.Errorf("encoding: %w", err)
	}
	files[distributionKey] = configuration
	read := maps.Clone(files)
	if secrets.Certificate != nil {
		read[corev1.TLSCertKey], read[corev1.TLSPrivateKeyKey] = secrets.Certificate.Certificate, secrets.Certificate.Key
	}
	return engine{
		files:         files,
		configDir:     distributionDir,
		args:          []string{"serve", distributionDir + "/" + distributionKey},
		environment:   environment,
		proxyURLs:     proxyURLs,
		readinessPath: "/debug/health",
		livenessPath:  "/debug/health",
		checksum:      checksum(read),
	}, nil
}

// addProxyURLs adds a file for each proxy with its URL and the credentials, because the registry reads credentials only from
// the URLs in its environment. It returns the names of the files by the names of the variables.
func addProxyURLs(files map[string][]byte, proxy *v1alpha3.Proxy, credentials *Credentials) (map[string]string, error) {
	if proxy == nil || credentials == nil {
		return nil, nil
	}
	keys := map[string]string{}
	for variable, value := range map[string]*string{httpProxyVariable: proxy.HTTPProxy, httpsProxyVariable: proxy.HTTPSProxy} {
		if value == nil {
			continue
		}
		address, err := url.Parse(*value)
		if err != nil {
			return nil, fmt.Errorf("parsing the URL of a proxy: %w", err)
		}
		address.User = url.UserPassword(credentials.Username, credentials.Password)
		key := strings.ReplaceAll(strings.ToLower(variable), "_", "-")
		keys[variable], files[key] = key, []byte(address.String())
	}
	return keys, nil
}
