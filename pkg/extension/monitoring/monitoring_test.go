// SPDX-License-Identifier: Apache-2.0

package monitoring

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"github.com/gardener/gardener/pkg/component/observability/monitoring/prometheus/shoot"
	"github.com/gardener/gardener/pkg/gardenlet/features"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

var caches = []v1alpha3.RegistryCache{{Upstream: "docker.io"}, {Upstream: "registry.example.com:5443", ServiceNameSuffix: new("mine")}}

func TestGolden(t *testing.T) {
	t.Parallel()
	var documents [][]byte
	for _, obj := range Objects("shoot--dev--crazy-botany", caches) {
		if configMap, ok := obj.(*corev1.ConfigMap); ok {
			// TestDashboard looks into it.
			configMap.Data = nil
		}
		document, err := yaml.Marshal(obj)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, document)
	}
	got := bytes.Join(documents, []byte("---\n"))
	path := filepath.Join("testdata", "objects.yaml")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s: -want +got (write it with go test -update):\n%s", path, diff)
	}
}

func TestWanted(t *testing.T) {
	t.Parallel()
	for purpose, want := range map[gardencorev1beta1.ShootPurpose]bool{"": true, "production": true, "testing": false} {
		shoot := &gardencorev1beta1.Shoot{}
		if purpose != "" {
			shoot.Spec.Purpose = &purpose
		}
		if got := Wanted(shoot); got != want {
			t.Errorf("purpose %q: %t, want %t", purpose, got, want)
		}
	}
}

// The dashboard has what Plutono needs to show it.
func TestDashboard(t *testing.T) {
	t.Parallel()
	var got struct {
		UID, Title string
		Panels     []struct {
			ID      int
			Title   string
			Targets []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal([]byte(dashboard()), &got); err != nil {
		t.Fatal(err)
	}
	if got.UID == "" || got.Title == "" || len(got.Panels) != len(panels) {
		t.Errorf("UID %q, title %q, %d panels", got.UID, got.Title, len(got.Panels))
	}
	seen := map[string]bool{}
	for _, panel := range got.Panels {
		if panel.Title == "" || seen[panel.Title] || panel.ID == 0 || len(panel.Targets) == 0 {
			t.Errorf("bad panel %+v", panel)
		}
		seen[panel.Title] = true
	}
}

// An alert without these labels reaches nobody.
func TestAlertsReachTheShootOwner(t *testing.T) {
	t.Parallel()
	for _, rule := range rules(caches) {
		for key, want := range map[string][]string{
			"type": {"shoot"}, "visibility": {"owner"}, "severity": {"info", "warning"}, "service": {"registry-cache"},
		} {
			if !slices.Contains(want, rule.Labels[key]) {
				t.Errorf("%s: label %s is %q, want one of %q", rule.Alert, key, rule.Labels[key], want)
			}
		}
		if rule.For == nil || rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
			t.Errorf("%s: it lacks a time, a summary or a description", rule.Alert)
		}
	}
}

// Each expression is PromQL, and reads nothing but what the cache server, the stock registry or Gardener's own
// configuration of that Prometheus has.
func TestExpressionsReadExistingMetrics(t *testing.T) {
	t.Parallel()
	var expressions []string
	for _, rule := range rules(caches) {
		expressions = append(expressions, rule.Expr.String())
	}
	for _, panel := range panels {
		for _, query := range panel.queries {
			// Plutono puts the chosen caches there.
			expressions = append(expressions, strings.ReplaceAll(query.expression, "$cache", "registry-docker-io"))
		}
	}
	known := serverMetrics(t)
	kubelet := kubeletMetrics(t)
	read := map[string]bool{}
	for i, names := range metricsOf(t, expressions) {
		if len(names) == 0 {
			t.Errorf("%s reads no metric", expressions[i])
		}
		for _, name := range names {
			read[name] = true
			if name != "up" && !known[name] && !slices.Contains(stockMetrics, name) && !kubelet.MatchString(name) {
				t.Errorf("there is no metric %s, which is read by %s", name, expressions[i])
			}
		}
	}
	if !read["registry_cache_requests_total"] || !read["kubelet_volume_stats_available_bytes"] {
		t.Errorf("the metrics that were found are %v, this test does not test what it should", read)
	}
}

// stockMetrics are those of the distribution project's registry as a proxy (registry/proxy/proxymetrics.go).
var stockMetrics = []string{
	"registry_proxy_requests_total", "registry_proxy_hits_total", "registry_proxy_misses_total",
	"registry_proxy_pulled_bytes_total", "registry_proxy_pushed_bytes_total",
}

// kubeletMetrics are what the Shoot's Prometheus keeps of kubelets.
func kubeletMetrics(t *testing.T) *regexp.Regexp {
	t.Helper()
	features.RegisterFeatureGates() // as gardenlet does when it starts
	for _, config := range shoot.CentralScrapeConfigs("shoot--dev--crazy-botany", "ca", false) {
		for _, relabel := range config.Spec.MetricRelabelConfigs {
			if relabel.Action == "keep" && strings.Contains(relabel.Regex, "kubelet_volume_stats") {
				return regexp.MustCompile(relabel.Regex)
			}
		}
	}
	t.Fatal("Gardener does not keep any metrics of volumes")
	return nil
}

// metricsOf are the names of the metrics that each expression reads, by Prometheus' own parser.
func metricsOf(t *testing.T, expressions []string) (names [][]string) {
	t.Helper()
	input, err := json.Marshal(expressions)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "run", ".")
	cmd.Dir = filepath.Join("..", "..", "..", "hack", "promql")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-trimpath")
	cmd.Stdin = bytes.NewReader(input)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	if err := json.Unmarshal(output, &names); err != nil || len(names) != len(expressions) {
		t.Fatalf("%d answers for %d expressions, %v", len(names), len(expressions), err)
	}
	return names
}

// serverMetrics are the names under which a running cache server serves samples. It has answered a request, because some
// metrics are there only then.
func serverMetrics(t *testing.T) map[string]bool {
	t.Helper()
	upstream := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(upstream.Close)
	cfg := config.Default()
	cfg.Upstream = config.Upstream{Host: "docker.io", RemoteURL: upstream.URL}
	cfg.Listen.Address, cfg.Debug.Address, cfg.Storage.Root = "127.0.0.1:0", "127.0.0.1:0", t.TempDir()
	server, err := cacheserver.New(cfg, cacheserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	get(t, "http://"+server.Address()+"/v2/library/sample/manifests/v1")
	names := map[string]bool{}
	for line := range strings.Lines(get(t, "http://"+server.DebugAddress()+"/metrics")) {
		if end := strings.IndexAny(line, "{ "); end > 0 && line[0] != '#' {
			names[line[:end]] = true
		}
	}
	return names
}

func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// The caches may be called what Shoot owners like; the expression must not break.
func TestDownNamesTheCache(t *testing.T) {
	t.Parallel()
	var got []string
	for _, rule := range rules(caches) {
		if rule.Alert == "RegistryCacheDown" {
			got = append(got, rule.Labels["upstream"]+": "+rule.Expr.String())
		}
	}
	want := []string{
		`docker.io: absent(up{job="registry-cache",cache="registry-docker-io"} == 1)`,
		`registry.example.com:5443: absent(up{job="registry-cache",cache="registry-mine"} == 1)`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if len(rules(nil)) != len(alerts) {
		t.Errorf("%d rules without caches, want %d", len(rules(nil)), len(alerts))
	}
}
