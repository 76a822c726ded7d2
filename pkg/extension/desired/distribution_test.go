// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"bytes"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	configv1alpha1 "github.com/registry-cache/extension/pkg/apis/config/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// The stock registry reads everything only when it starts.
func TestWhatRestartsThePodOfDistribution(t *testing.T) {
	t.Parallel()
	stock := Options{Engine: configv1alpha1.Distribution, Image: "i", CABundle: "a"}
	private := Secrets{Credentials: &Credentials{Username: "robot", Password: "a"}, CABundle: "b"}
	before := podTemplate(t, v1alpha3.RegistryCache{Upstream: "docker.io"}, private, stock)
	for _, tc := range []struct {
		name     string
		cache    v1alpha3.RegistryCache
		secrets  Secrets
		restarts bool
	}{
		{"nothing changed", v1alpha3.RegistryCache{}, private, false},
		{"other watermark, which it ignores", v1alpha3.RegistryCache{GarbageCollection: &v1alpha3.GarbageCollection{HighWatermark: new(int32(50))}}, private, false},
		{"other TTL", v1alpha3.RegistryCache{GarbageCollection: &v1alpha3.GarbageCollection{TTL: &metav1.Duration{}}}, private, true},
		{"other password", v1alpha3.RegistryCache{}, Secrets{Credentials: &Credentials{Username: "robot", Password: "b"}, CABundle: "b"}, true},
		{"other roots of the Shoot owner", v1alpha3.RegistryCache{}, Secrets{Credentials: private.Credentials, CABundle: "c"}, true},
		{"no credentials", v1alpha3.RegistryCache{}, Secrets{CABundle: "b"}, true},
	} {
		tc.cache.Upstream = "docker.io"
		after := podTemplate(t, tc.cache, tc.secrets, stock)
		if restarts := before.Annotations[checksumAnnotation] != after.Annotations[checksumAnnotation]; restarts != tc.restarts {
			t.Errorf("%s: pod restarts: %t, want %t", tc.name, restarts, tc.restarts)
		}
	}
}

var stockListens = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// lockedBuffer is written by a process and read by the test.
type lockedBuffer struct {
	mu     sync.Mutex // guards buffer
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// TestDistributionRunsWithItsConfig starts the stock registry itself with the files, arguments and environment of the
// pod. Its upstream has a certificate of its own and wants credentials that YAML would take for something else.
func TestDistributionRunsWithItsConfig(t *testing.T) {
	t.Parallel()
	credentials := Credentials{Username: "@robot", Password: `"hunter2": # & {%`}
	manifest := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`)
	upstream := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		username, password, _ := r.BasicAuth()
		switch {
		case username != credentials.Username || password != credentials.Password:
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/v2/":
		default:
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			w.Write(manifest)
		}
	}))
	t.Cleanup(upstream.Close)
	cache := defaulted(v1alpha3.RegistryCache{Upstream: "registry.example.com", RemoteURL: new(upstream.URL)})
	bundle := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: upstream.Certificate().Raw}))
	engine, err := engineOf(cache, cache.Volume.Size.Value(), Secrets{Credentials: &credentials, CABundle: bundle}, Options{Engine: configv1alpha1.Distribution, Image: "i"})
	if err != nil {
		t.Fatal(err)
	}

	address, debug := startStock(t, engine)
	for url, want := range map[string]string{
		"http://" + address + "/v2/":                            "{}",
		"http://" + address + "/v2/library/sample/manifests/v1": string(manifest),
		"http://" + debug + engine.readinessPath:                "{}",
		"http://" + debug + engine.livenessPath:                 "{}",
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || strings.TrimSpace(string(body)) != want {
			t.Errorf("%s: %s, %q, %v; want %q", url, resp.Status, body, err, want)
		}
	}
	resp, err := http.Get("http://" + debug + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	metrics, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Contains(metrics, []byte("registry_proxy_misses_total")) {
		t.Errorf("no metrics of the proxy: %v\n%s", err, metrics)
	}
}

// startStock runs the stock registry that hack/distribution pins as the container would, but in folders of the test and
// on free ports, and returns the addresses of the registry and of its debug server.
func startStock(t *testing.T, engine engine) (address, debug string) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "registry")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", program, "tool")
	build.Dir = filepath.Join("..", "..", "..", "hack", "distribution")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the stock registry: %v\n%s", err, output)
	}
	for name, content := range engine.files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var args []string
	for _, arg := range engine.args {
		args = append(args, strings.ReplaceAll(arg, engine.configDir, dir))
	}
	log := &lockedBuffer{}
	process := exec.Command(program, args...)
	debug = freeAddress(t) // the registry does not tell which port it has chosen
	process.Env = []string{"REGISTRY_HTTP_ADDR=127.0.0.1:0", "REGISTRY_HTTP_DEBUG_ADDR=" + debug, "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=" + filepath.Join(dir, "root")}
	for _, variable := range engine.environment {
		process.Env = append(process.Env, variable.Name+"="+strings.ReplaceAll(variable.Value, engine.configDir, dir))
	}
	process.Stdout, process.Stderr = log, log
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		process.Wait() // the log tells why it ended
		close(ended)
	}()
	t.Cleanup(func() {
		process.Process.Kill() // it may have ended before
		<-ended
		if t.Failed() {
			t.Logf("log of the stock registry:\n%s", log)
		}
	})
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		if match := stockListens.FindStringSubmatch(log.String()); match != nil {
			return match[1], debug
		}
		select {
		case <-ended:
			t.Fatal("the stock registry ended")
		case <-t.Context().Done():
			t.Fatal("the stock registry does not listen")
		case <-ticker.C:
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}
