// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gardener/gardener/pkg/client/kubernetes"
	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	labelset "k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/yaml"

	configv1alpha1 "github.com/registry-cache/extension/pkg/apis/config/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

func TestGolden(t *testing.T) {
	t.Parallel()
	options := Options{Image: "registry.example.com/registry-cache:v1.2.3"}
	stock := Options{Engine: configv1alpha1.Distribution, Image: "registry.example.com/distribution:v1.2.3"}
	for _, tc := range []struct {
		file      string
		cache     v1alpha3.RegistryCache
		secrets   Secrets
		options   Options
		clusterIP string
	}{
		{"docker-io.yaml", defaulted(v1alpha3.RegistryCache{Upstream: "docker.io"}), Secrets{}, options, ""},
		{
			"all-fields.yaml",
			v1alpha3.RegistryCache{
				Upstream:  "registry.example.com:5443",
				RemoteURL: new("http://10.1.2.3:5000"),
				Volume:    &v1alpha3.Volume{Size: new(resource.MustParse("100Gi")), StorageClassName: new("fast")},
				GarbageCollection: &v1alpha3.GarbageCollection{
					TTL: &metav1.Duration{}, HighWatermark: new(int32(75)), LowWatermark: new(int32(50)),
				},
				Proxy: &v1alpha3.Proxy{
					HTTPProxy:  new("http://proxy.example.com:3128"),
					HTTPSProxy: new("https://proxy.example.com"),
					NoProxy:    new("10.0.0.0/8,.internal.example.com"),
				},
				ServiceNameSuffix: new("the-example-registry-of-the-team-that-likes-long-names"),
			},
			Secrets{},
			Options{Image: options.Image, CABundle: "-----BEGIN CERTIFICATE-----\n", CacheServer: configv1alpha1.CacheServer{
				Upstream: configv1alpha1.CacheServerUpstream{HeaderTimeout: &metav1.Duration{Duration: 20 * time.Second}},
				Tags:     configv1alpha1.CacheServerTags{MaxStale: &metav1.Duration{Duration: time.Hour}},
				Debug:    configv1alpha1.CacheServerDebug{PProf: true},
			}},
			"10.96.0.20",
		},
		{
			"private.yaml",
			defaulted(v1alpha3.RegistryCache{Upstream: "registry.example.com"}),
			Secrets{Credentials: &Credentials{Username: "@robot", Password: "hunter2: #"}, CABundle: "-----BEGIN CERTIFICATE-----\nof the Shoot owner\n"},
			// Without a line feed at its end, as operators may write it.
			Options{Image: options.Image, CABundle: "-----BEGIN CERTIFICATE-----\nof the operator"},
			"",
		},
		{
			"highly-available.yaml",
			defaulted(v1alpha3.RegistryCache{Upstream: "docker.io", HighAvailability: &v1alpha3.HighAvailability{Enabled: new(true)}}),
			Secrets{},
			options,
			"",
		},
		{
			// Too long for the label of a pod's name, and its label has no port.
			"long-name.yaml",
			defaulted(v1alpha3.RegistryCache{Upstream: "registry.of-the-team-that-likes-long-names.eu-west-1.example.com:5443"}),
			Secrets{},
			Options{Image: options.Image, Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")},
			}},
			"",
		},
		{"distribution.yaml", defaulted(v1alpha3.RegistryCache{Upstream: "docker.io"}), Secrets{}, stock, ""},
		{
			"distribution-private.yaml",
			v1alpha3.RegistryCache{
				Upstream:          "registry.example.com",
				Volume:            &v1alpha3.Volume{Size: new(resource.MustParse("100Gi")), StorageClassName: new("fast")},
				GarbageCollection: &v1alpha3.GarbageCollection{TTL: &metav1.Duration{}},
				Proxy:             &v1alpha3.Proxy{HTTPSProxy: new("https://proxy.example.com"), NoProxy: new("10.0.0.0/8")},
				HighAvailability:  &v1alpha3.HighAvailability{Enabled: new(true)},
				ServiceNameSuffix: new("mine"),
			},
			Secrets{Credentials: &Credentials{Username: "@robot", Password: "hunter2: #"}, CABundle: "-----BEGIN CERTIFICATE-----\nof the Shoot owner\n"},
			Options{Engine: configv1alpha1.Distribution, Image: stock.Image, CABundle: "-----BEGIN CERTIFICATE-----\nof the operator"},
			"",
		},
	} {
		t.Run(tc.file, func(t *testing.T) {
			t.Parallel()
			cache := defaulted(tc.cache)
			got := toYAML(t, append(workload(t, cache, tc.secrets, tc.options), Service(cache, tc.clusterIP), VerticalPodAutoscaler(cache)))
			compareWithGolden(t, tc.file, got)
		})
	}
}

// compareWithGolden compares with a file in testdata, or writes it with -update.
func compareWithGolden(t *testing.T, file string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", file)
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

// The server must understand what the extension writes for it.
func TestServerReadsItsConfig(t *testing.T) {
	t.Parallel()
	cache := defaulted(v1alpha3.RegistryCache{
		Upstream: "docker.io",
		GarbageCollection: &v1alpha3.GarbageCollection{
			TTL: &metav1.Duration{Duration: 90 * time.Minute}, HighWatermark: new(int32(60)),
		},
		Volume: &v1alpha3.Volume{Size: new(resource.MustParse("20G"))},
	})
	secrets := Secrets{Credentials: &Credentials{Username: "robot", Password: "hunter2"}}
	// The claim was enlarged by hand.
	objects, err := Workload(cache, 30e9, secrets, Options{Image: "i", CABundle: "pem"})
	if err != nil {
		t.Fatal(err)
	}
	for _, obj := range objects {
		secret, ok := obj.(*corev1.Secret)
		if !ok {
			continue
		}
		got, err := config.Parse(secret.Data["config.yaml"])
		if err != nil {
			t.Fatal(err)
		}
		want := config.Default()
		want.Upstream = config.Upstream{
			Host: "docker.io", RemoteURL: "https://registry-1.docker.io",
			CAFile: "/etc/registry-cache/ca.crt", CredentialsDir: "/etc/registry-cache",
		}
		want.GarbageCollection.TTL = config.Duration(90 * time.Minute)
		want.Storage.HighWatermark, want.Storage.LowWatermark = 60, 50
		want.Storage.Size = 30e9
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		return
	}
	t.Fatal("no Secret among the objects")
}

func TestWhatRestartsThePod(t *testing.T) {
	t.Parallel()
	options := Options{Image: "i", CABundle: "a"}
	before := podTemplate(t, v1alpha3.RegistryCache{Upstream: "docker.io"}, Secrets{}, options)
	for _, tc := range []struct {
		name     string
		cache    v1alpha3.RegistryCache
		secrets  Secrets
		options  Options
		restarts bool
	}{
		{"nothing changed", v1alpha3.RegistryCache{}, Secrets{}, options, false},
		{"larger volume", v1alpha3.RegistryCache{Volume: &v1alpha3.Volume{Size: new(resource.MustParse("20Gi"))}}, Secrets{}, options, false},
		{"other TTL", v1alpha3.RegistryCache{GarbageCollection: &v1alpha3.GarbageCollection{TTL: &metav1.Duration{Duration: 1}}}, Secrets{}, options, true},
		{"other watermark", v1alpha3.RegistryCache{GarbageCollection: &v1alpha3.GarbageCollection{HighWatermark: new(int32(50))}}, Secrets{}, options, true},
		{"proxy", v1alpha3.RegistryCache{Proxy: &v1alpha3.Proxy{HTTPSProxy: new("https://proxy.example.com")}}, Secrets{}, options, true},
		{"proxy that says nothing", v1alpha3.RegistryCache{Proxy: &v1alpha3.Proxy{}}, Secrets{}, options, false},
		{"other remote URL", v1alpha3.RegistryCache{RemoteURL: new("https://mirror.example.com")}, Secrets{}, options, true},
		{"other roots", v1alpha3.RegistryCache{}, Secrets{}, Options{Image: "i", CABundle: "b"}, true},
		{"no roots", v1alpha3.RegistryCache{}, Secrets{}, Options{Image: "i"}, true},
		{"settings of the cache server", v1alpha3.RegistryCache{}, Secrets{}, Options{Image: "i", CABundle: "a", CacheServer: configv1alpha1.CacheServer{
			Tags: configv1alpha1.CacheServerTags{MaxStale: &metav1.Duration{}},
		}}, true},
		{"other image", v1alpha3.RegistryCache{}, Secrets{}, Options{Image: "j", CABundle: "a"}, true},
		// The server must be told that there are credentials now.
		{"credentials", v1alpha3.RegistryCache{}, Secrets{Credentials: &Credentials{Username: "robot", Password: "a"}}, options, true},
		{"credentials of the proxy", v1alpha3.RegistryCache{}, Secrets{ProxyCredentials: &Credentials{Username: "robot", Password: "a"}}, options, true},
		{"roots of the Shoot owner beside the operator's", v1alpha3.RegistryCache{}, Secrets{CABundle: "b"}, options, false},
	} {
		tc.cache.Upstream = "docker.io"
		if restarts := cmp.Diff(before, podTemplate(t, tc.cache, tc.secrets, tc.options)) != ""; restarts != tc.restarts {
			t.Errorf("%s: pod restarts: %t, want %t", tc.name, restarts, tc.restarts)
		}
	}
}

// The server reads the files again; a restart would interrupt pulls.
func TestRotationDoesNotRestartThePod(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name          string
		before, after Secrets
	}{
		{"password", Secrets{Credentials: &Credentials{Username: "robot", Password: "a"}}, Secrets{Credentials: &Credentials{Username: "robot", Password: "b"}}},
		{"username", Secrets{Credentials: &Credentials{Username: "robot", Password: "a"}}, Secrets{Credentials: &Credentials{Username: "other", Password: "a"}}},
		{"roots", Secrets{CABundle: "a"}, Secrets{CABundle: "b"}},
		{"password of the proxy", Secrets{ProxyCredentials: &Credentials{Username: "robot", Password: "a"}}, Secrets{ProxyCredentials: &Credentials{Username: "robot", Password: "b"}}},
	} {
		cache := v1alpha3.RegistryCache{Upstream: "docker.io"}
		before, after := podTemplate(t, cache, tc.before, Options{Image: "i"}), podTemplate(t, cache, tc.after, Options{Image: "i"})
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("%s: -before +after:\n%s", tc.name, diff)
		}
		for _, mount := range after.Spec.Containers[0].VolumeMounts {
			if mount.SubPath != "" {
				t.Errorf("%s would never be updated", mount.MountPath)
			}
		}
	}
}

// Two caches whose upstreams give the same names, and the same label, must not share anything.
func TestServiceNameSuffixSeparatesCaches(t *testing.T) {
	t.Parallel()
	names := func(cache v1alpha3.RegistryCache) (names []string, selected map[string]string) {
		for _, obj := range append(workload(t, cache, Secrets{}, Options{Image: "i"}), Service(cache, "")) {
			names = append(names, fmt.Sprintf("%T %s", obj, obj.GetName()))
			if set, ok := obj.(*appsv1.StatefulSet); ok {
				names = append(names, "volume "+set.Spec.VolumeClaimTemplates[0].Name+"-"+set.Name+"-0")
				selected = set.Spec.Template.Labels
			}
		}
		return names, selected
	}
	plain := defaulted(v1alpha3.RegistryCache{Upstream: "reg.io:5000"})
	suffixed := defaulted(v1alpha3.RegistryCache{Upstream: "reg.io-5000", ServiceNameSuffix: new("other")})
	plainNames, _ := names(plain)
	suffixedNames, suffixedPod := names(suffixed)
	for _, name := range suffixedNames {
		if slices.Contains(plainNames, name) {
			t.Errorf("both caches have %s", name)
		}
	}
	want := []string{
		"*v1.Secret registry-other-config", "*v1.StatefulSet registry-other", "volume cache-volume-registry-other-0",
		"*v1.NetworkPolicy registry-other", "*v1.Service registry-other",
	}
	if diff := cmp.Diff(want, suffixedNames); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if selector := labelset.SelectorFromSet(Service(plain, "").Spec.Selector); selector.Matches(labelset.Set(suffixedPod)) {
		t.Errorf("the Service with selector %s selects the pod of the other cache", selector)
	}
}

func TestEndpoint(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		tls             bool
		clusterIP, want string
	}{
		{false, "10.96.0.20", "http://10.96.0.20:5000"},
		{false, "fd00::14", "http://[fd00::14]:5000"},
		{true, "10.96.0.20", "https://10.96.0.20:5000"},
		{true, "fd00::14", "https://[fd00::14]:5000"},
	} {
		cache := v1alpha3.RegistryCache{Upstream: "docker.io", HTTP: &v1alpha3.HTTP{TLS: &tc.tls}}
		if got := Endpoint(cache, tc.clusterIP); got != tc.want {
			t.Errorf("Endpoint(%s) = %s, want %s", tc.clusterIP, got, tc.want)
		}
	}
}

func TestWorkloadRefusesWhatTheServerWould(t *testing.T) {
	t.Parallel()
	_, err := Workload(defaulted(v1alpha3.RegistryCache{Upstream: "docker.io", RemoteURL: new("")}), 1, Secrets{}, Options{Image: "i"})
	if err == nil || !strings.HasPrefix(err.Error(), "writing the configuration of the cache of docker.io: ") {
		t.Errorf("got error %v", err)
	}
}

// defaulted fills in the defaults. What is about https is in tls_test.go.
func defaulted(cache v1alpha3.RegistryCache) v1alpha3.RegistryCache {
	if cache.HTTP == nil {
		cache.HTTP = &v1alpha3.HTTP{TLS: new(false)}
	}
	all := &v1alpha3.RegistryConfig{Caches: []v1alpha3.RegistryCache{cache}}
	v1alpha3.SetDefaults(all)
	return all.Caches[0]
}

func workload(t *testing.T, cache v1alpha3.RegistryCache, secrets Secrets, options Options) []client.Object {
	t.Helper()
	objects, err := Workload(cache, cache.Volume.Size.Value(), secrets, options)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func podTemplate(t *testing.T, cache v1alpha3.RegistryCache, secrets Secrets, options Options) corev1.PodTemplateSpec {
	t.Helper()
	for _, obj := range workload(t, defaulted(cache), secrets, options) {
		if set, ok := obj.(*appsv1.StatefulSet); ok {
			return set.Spec.Template
		}
	}
	t.Fatal("no StatefulSet among the objects")
	return corev1.PodTemplateSpec{}
}

// toYAML writes Secrets with readable data.
func toYAML(t *testing.T, objects []client.Object) []byte {
	t.Helper()
	var documents [][]byte
	for _, obj := range objects {
		gvk, err := apiutil.GVKForObject(obj, kubernetes.ShootScheme)
		if err != nil {
			t.Fatal(err)
		}
		obj.GetObjectKind().SetGroupVersionKind(gvk)
		if secret, ok := obj.(*corev1.Secret); ok {
			secret.StringData = map[string]string{}
			for key, value := range secret.Data {
				secret.StringData[key] = string(value)
			}
			secret.Data = nil
		}
		document, err := yaml.Marshal(obj)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, document)
	}
	return bytes.Join(documents, []byte("---\n"))
}

// Both engines get the credentials of a proxy from the config Secret only.
func TestProxyCredentials(t *testing.T) {
	t.Parallel()
	cache := defaulted(v1alpha3.RegistryCache{Upstream: "docker.io", Proxy: &v1alpha3.Proxy{
		HTTPProxy: new("http://proxy:3128"), HTTPSProxy: new("https://proxy:3129"), NoProxy: new("10.0.0.0/8"), SecretReferenceName: new("proxy"),
	}})
	secrets := Secrets{ProxyCredentials: &Credentials{Username: "robot", Password: "p@ss:/"}}
	fromSecret := func(variable, key string) corev1.EnvVar {
		return corev1.EnvVar{Name: variable, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: "registry-docker-io-config"}, Key: key,
		}}}
	}
	noProxy := corev1.EnvVar{Name: "NO_PROXY", Value: "10.0.0.0/8"}
	for engine, want := range map[configv1alpha1.Engine]struct {
		environment []corev1.EnvVar
		files       map[string]string
	}{
		configv1alpha1.RegistryCache: {
			[]corev1.EnvVar{{Name: "HTTP_PROXY", Value: "http://proxy:3128"}, {Name: "HTTPS_PROXY", Value: "https://proxy:3129"}, noProxy},
			map[string]string{"proxy-username": "robot", "proxy-password": "p@ss:/"},
		},
		configv1alpha1.Distribution: {
			[]corev1.EnvVar{fromSecret("HTTP_PROXY", "http-proxy"), fromSecret("HTTPS_PROXY", "https-proxy"), noProxy},
			map[string]string{"http-proxy": "http://robot:p%40ss%3A%2F@proxy:3128", "https-proxy": "https://robot:p%40ss%3A%2F@proxy:3129"},
		},
	} {
		options := Options{Engine: engine, Image: "i"}
		got := podTemplate(t, cache, secrets, options).Spec.Containers[0].Env
		if diff := cmp.Diff(want.environment, got[:min(3, len(got))]); diff != "" {
			t.Errorf("%s: environment: -want +got:\n%s", engine, diff)
		}
		files := workload(t, cache, secrets, options)[0].(*corev1.Secret).Data
		for name, content := range want.files {
			if string(files[name]) != content {
				t.Errorf("%s: file %s is %q, want %q", engine, name, files[name], content)
			}
		}
	}
}
