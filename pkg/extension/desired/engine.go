// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	configv1alpha1 "github.com/registry-cache/extension/pkg/apis/config/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/pkg/contract"
)

// caBundleKey is the key of the config Secret with certificate authorities, for both engines.
const caBundleKey = "ca.crt"

const (
	registryCacheDir = "/etc/registry-cache"
	registryCacheKey = "config.yaml"
)

// engine is what the pod of a cache takes from the program that runs in it. All else is the same for each of them:
// names, labels, ports, volumes and the user, so that one engine can take over from another one.
type engine struct {
	// files are the config Secret; configDir is where the container finds them.
	files     map[string][]byte
	configDir string
	// args follow the entrypoint of the image.
	args        []string
	environment []corev1.EnvVar
	// proxyURLs are the keys of files with the URL of a proxy that contains credentials, by the name of the variable.
	proxyURLs map[string]string
	// readinessPath and livenessPath are on the debug port.
	readinessPath, livenessPath string
	// checksum covers what the program reads only when it starts.
	checksum string
}

func engineOf(cache v1alpha3.RegistryCache, size int64, secrets Secrets, options Options) (engine, error) {
	if options.Engine == configv1alpha1.Distribution {
		return distribution(cache, size, secrets, options)
	}
	return registryCache(cache, size, secrets, options)
}

// registryCache is our own server. It reads the files of credentials and roots again when the kubelet has replaced them,
// and a rotation must not interrupt pulls, so its checksum does not cover what the Shoot owner's Secrets hold.
func registryCache(cache v1alpha3.RegistryCache, size int64, secrets Secrets, options Options) (engine, error) {
	server := config.Default()
	server.Upstream.Host = cache.Upstream
	server.Upstream.RemoteURL = *cache.RemoteURL
	server.GarbageCollection.TTL = config.Duration(cache.GarbageCollection.TTL.Duration)
	server.Storage.HighWatermark = int(*cache.GarbageCollection.HighWatermark)
	server.Storage.LowWatermark = int(*cache.GarbageCollection.LowWatermark)
	server.Storage.Size = config.Bytes(size)
	if timeout := options.CacheServer.Upstream.HeaderTimeout; timeout != nil {
		server.Upstream.HeaderTimeout = config.Duration(timeout.Duration)
	}
	if maxStale := options.CacheServer.Tags.MaxStale; maxStale != nil {
		server.Tags.MaxStale = config.Duration(maxStale.Duration)
	}
	server.Debug.PProf = options.CacheServer.Debug.PProf
	if TLS(cache) {
		server.Listen.TLS = serverTLS()
	}
	files := map[string][]byte{}
	if bundle := joinBundles(options.CABundle, secrets.CABundle); bundle != "" {
		server.Upstream.CAFile = registryCacheDir + "/" + caBundleKey
		files[caBundleKey] = []byte(bundle)
	}
	if credentials := secrets.Credentials; credentials != nil {
		server.Upstream.CredentialsDir = registryCacheDir
		files[contract.UsernameKey], files[contract.PasswordKey] = []byte(credentials.Username), []byte(credentials.Password)
	}
	if credentials := secrets.ProxyCredentials; credentials != nil {
		server.Upstream.ProxyCredentialsDir = registryCacheDir
		files[contract.ProxyUsernameKey], files[contract.ProxyPasswordKey] = []byte(credentials.Username), []byte(credentials.Password)
	}
	configuration, err := server.Marshal()
	if err != nil {
		return engine{}, err
	}
	files[registryCacheKey] = configuration
	// The server reads a changed size without a restart.
	server.Storage.Size = 0
	readOnce, err := server.Marshal()
	if err != nil {
		return engine{}, err
	}
	return engine{
		files:         files,
		configDir:     registryCacheDir,
		args:          []string{"serve", "--config", registryCacheDir + "/" + registryCacheKey},
		readinessPath: contract.ReadyPath,
		livenessPath:  contract.HealthPath,
		checksum:      checksum(map[string][]byte{registryCacheKey: readOnce, caBundleKey: []byte(options.CABundle)}),
	}, nil
}

// joinBundles puts the second bundle on a line of its own: a certificate that begins in the middle of a line is ignored.
func joinBundles(first, second string) string {
	if first != "" && second != "" && !strings.HasSuffix(first, "\n") {
		first += "\n"
	}
	return first + second
}

// checksum covers names and contents of files, with their lengths, so that nothing can move from one to the other
// unnoticed.
func checksum(files map[string][]byte) string {
	sum := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(sum, "%s %d\n%s", name, len(files[name]), files[name])
	}
	return hex.EncodeToString(sum.Sum(nil))
}
