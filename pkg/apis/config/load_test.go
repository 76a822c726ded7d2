// SPDX-License-Identifier: Apache-2.0

package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/pkg/apis/config/v1alpha1"
)

const header = "apiVersion: config.registry.extensions.gardener.cloud/v1alpha1\nkind: ControllerConfiguration\n"

func TestParse(t *testing.T) {
	t.Parallel()
	root := certificate(t)
	for _, tc := range []struct{ name, data, bundle, wantErr string }{
		{"nothing set", header, "", ""},
		{"blank bundle", header + withBundle(t, " \n"), "", ""},
		{"one root", header + withBundle(t, root), root, ""},
		{"two roots with text between", header + withBundle(t, root+"\n# the old one\n"+root), root + "\n# the old one\n" + root, ""},
		{"empty file", "", "", `it is "" "", want apiVersion: config.registry.extensions.gardener.cloud/v1alpha1, kind: ControllerConfiguration`},
		{"unknown field", header + "caBundel: x\n", "", "caBundel: Forbidden: unknown field; the fields are kind, apiVersion, engine, caBundle, "},
		{"no PEM", header + withBundle(t, "/etc/ssl/ca.crt"), "", "caBundle: Invalid value: one of its PEM blocks cannot be read"},
		{"cut off at the end", header + withBundle(t, root+root[:len(root)/2]), "", "caBundle: Invalid value: one of its PEM blocks cannot be read"},
		{"cut off at the start", header + withBundle(t, root[:len(root)/2]+"\n"+root), "", "caBundle: Invalid value: one of its PEM blocks cannot be read"},
		{"a key", header + withBundle(t, strings.ReplaceAll(root, "CERTIFICATE", "PRIVATE KEY")), "", "caBundle: Invalid value: PEM block 1 is a PRIVATE KEY, want only certificates"},
		{"no certificate", header + withBundle(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}))), "", "caBundle: Invalid value: certificate 1: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse([]byte(tc.data))
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("got error %v, want %s", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.CABundle != tc.bundle {
				t.Errorf("got bundle %q, want %q", got.CABundle, tc.bundle)
			}
		})
	}
}

func TestParseBadValues(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ data, want string }{
		{"- a", "want an object with apiVersion and kind"},
		{"Engine: distribution", "Engine: Forbidden: unknown field; the fields are kind, apiVersion, engine"},
		{"engine: nginx", `engine: Unsupported value: "nginx": supported values: "registry-cache", "distribution"`},
		{"engine: [distribution]", `engine: Invalid value: "[\"distribution\"]": must be a string`},
		{"engine: distribution\nengine: distribution", `key "engine" already set in map`},
		{"readiness: {interval: 300}", `readiness.interval: Invalid value: "300": must be a duration in hours, minutes and seconds, for example 168h`},
		{"readiness: {interval: 9s}", `readiness.interval: Invalid value: "9s": must be at least 10s`},
		{"readiness: {unreadyInterval: 0s}", `readiness.unreadyInterval: Invalid value: "0s": must be at least 1s`},
		{"readiness: {unreadyInterval: 6m}", `readiness.unreadyInterval: Invalid value: "6m0s": must not be greater than interval, which is 5m0s`},
		{"resources: {requests: {cpu: lots}}", `resources.requests[cpu]: Invalid value: "lots": must be a quantity, for example 10Gi`},
		{"resources: {requests: {memory: -1Gi}}", `resources.requests[memory]: Invalid value: "-1Gi": must be greater than 0; leave it out for none`},
		{"resources: {limits: {cpu: 0}}", `resources.limits[cpu]: Invalid value: "0": must be greater than 0; leave it out for none`},
		{"resources: {limits: {disk: 1Gi}}", `resources.limits[disk]: Unsupported value: "disk": supported values: "cpu", "memory"`},
		{"resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}", `resources.requests[memory]: Invalid value: "2Gi": must not be greater than the limit, which is 1Gi`},
		{"resources: {claims: [{name: gpu}]}", "resources.claims: Forbidden: caches claim no devices; remove it"},
		{"resources: {request: {}}", "resources.request: Forbidden: unknown field; the fields are "},
		{"cacheServer: {upstream: {headerTimeout: 28s}}", `cacheServer.upstream.headerTimeout: Invalid value: "28s": must be more than 0s and at most 27s, for example 25s`},
		{"cacheServer: {upstream: {headerTimeout: 0s}}", `cacheServer.upstream.headerTimeout: Invalid value: "0s": must be more than 0s and at most 27s`},
		{"cacheServer: {tags: {maxStale: -1s}}", `cacheServer.tags.maxStale: Invalid value: "-1s": must not be negative, for example 24h; 0s disables stale answers`},
		{"cacheServer: {debug: {pprof: 1}}", `cacheServer.debug.pprof: Invalid value: "1": must be true or false`},
		{"cacheServer: {tags: {revalidateAfter: 1m}}", "cacheServer.tags.revalidateAfter: Forbidden: unknown field; the fields are "},
		// All at once: an operator corrects a file once.
		{"engine: nginx\nreadiness: {interval: 1s, unreadyInterval: 1s}", "readiness.interval: "},
	} {
		data := tc.data
		if data != "- a" {
			data = header + data
		}
		if _, err := Parse([]byte(data)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got error %v, want %s", tc.data, err, tc.want)
		}
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	minute := metav1.Duration{Duration: time.Minute}
	for data, want := range map[string]v1alpha1.ControllerConfiguration{
		"": {Engine: v1alpha1.RegistryCache, Readiness: v1alpha1.Readiness{
			Interval: &metav1.Duration{Duration: 5 * time.Minute}, UnreadyInterval: &metav1.Duration{Duration: 30 * time.Second},
		}},
		"readiness: {interval: 20s}": {Engine: v1alpha1.RegistryCache, Readiness: v1alpha1.Readiness{
			Interval: &metav1.Duration{Duration: 20 * time.Second}, UnreadyInterval: &metav1.Duration{Duration: 20 * time.Second},
		}},
		"engine: distribution\nreadiness: {interval: 1m, unreadyInterval: 1m}\nresources: {requests: {cpu: 50m}, limits: {memory: 1Gi}}": {
			Engine:    v1alpha1.Distribution,
			Readiness: v1alpha1.Readiness{Interval: &minute, UnreadyInterval: &minute},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{"cpu": resource.MustParse("50m")}, Limits: corev1.ResourceList{"memory": resource.MustParse("1Gi")},
			},
		},
		"cacheServer: {upstream: {headerTimeout: 27s}, tags: {maxStale: 0s}, debug: {pprof: true}}\nreadiness: {interval: 1m, unreadyInterval: 1m}": {
			Engine: v1alpha1.RegistryCache,
			CacheServer: v1alpha1.CacheServer{
				Upstream: v1alpha1.CacheServerUpstream{HeaderTimeout: &metav1.Duration{Duration: 27 * time.Second}},
				Tags:     v1alpha1.CacheServerTags{MaxStale: &metav1.Duration{}},
				Debug:    v1alpha1.CacheServerDebug{PProf: true},
			},
			Readiness: v1alpha1.Readiness{Interval: &minute, UnreadyInterval: &minute},
		},
	} {
		got, err := Parse([]byte(header + data))
		if err != nil {
			t.Errorf("%s: %v", data, err)
			continue
		}
		want.APIVersion, want.Kind = v1alpha1.APIVersion, v1alpha1.Kind
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", data, diff)
		}
	}
	got, err := Parse([]byte(header))
	if err != nil {
		t.Fatal(err)
	}
	got.TypeMeta = metav1.TypeMeta{}
	if diff := cmp.Diff(Default(), got); diff != "" {
		t.Errorf("without a file: -want +got:\n%s", diff)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, data string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if _, err := Load(write("good.yaml", header)); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "missing.yaml"):                                "opening the controller configuration: ",
		write("bad.yaml", "kind: x"):                                      "parsing the controller configuration " + dir,
		write("large.yaml", header+"# "+strings.Repeat("x", maxFileSize)): "it is larger than 1048576 bytes",
	} {
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load(%s): got error %v, want %s", path, err, want)
		}
	}
}

func withBundle(t *testing.T, bundle string) string {
	t.Helper()
	text, err := yaml.Marshal(map[string]string{"caBundle": bundle})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func certificate(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
