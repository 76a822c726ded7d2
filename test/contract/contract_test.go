// SPDX-License-Identifier: Apache-2.0

// Package contract tests that admission, controller, node configuration and cache server treat the same input alike,
// through the entry point of each.
package contract

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"golang.org/x/net/http/httpproxy"
	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	webhookadmission "sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/registry-cache/extension/pkg/admission"
	configv1alpha1 "github.com/registry-cache/extension/pkg/apis/config/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/contract/contracttest"
	"github.com/registry-cache/extension/pkg/extension/desired"
	"github.com/registry-cache/extension/pkg/nodeconfig"
)

// fields are the fields of a cache that more than one program reads. A nil field is left out.
type fields struct {
	Upstream          *string     `json:"upstream,omitempty"`
	RemoteURL         *string     `json:"remoteURL,omitempty"`
	GarbageCollection *collection `json:"garbageCollection,omitempty"`
	Proxy             *proxy      `json:"proxy,omitempty"`
}

type collection struct {
	TTL           *string `json:"ttl,omitempty"`
	HighWatermark *int32  `json:"highWatermark,omitempty"`
	LowWatermark  *int32  `json:"lowWatermark,omitempty"`
}

type proxy struct {
	HTTPProxy  *string `json:"httpProxy,omitempty"`
	HTTPSProxy *string `json:"httpsProxy,omitempty"`
	NoProxy    *string `json:"noProxy,omitempty"`
}

// garden is the part of a manager that the admission webhook uses.
type garden struct {
	manager.Manager
	client client.Client
}

func (g garden) GetScheme() *runtime.Scheme  { return g.client.Scheme() }
func (g garden) GetAPIReader() client.Reader { return g.client }

// admit returns why the admission webhook rejects a Shoot with the cache.
type admit func(cache fields) error

func newAdmission(t testing.TB) admit {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(gardencorev1beta1.AddToScheme(scheme), corev1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	webhook, err := admission.NewWebhook(garden{client: fake.NewClientBuilder().WithScheme(scheme).Build()})
	if err != nil {
		t.Fatal(err)
	}
	return func(cache fields) error {
		shoot := `{"apiVersion":"core.gardener.cloud/v1beta1","kind":"Shoot","spec":{"extensions":[{"type":"registry-cache","providerConfig":` + providerConfig(cache) + `}]}}`
		response := webhook.Webhook.Handler.Handle(context.Background(), webhookadmission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
			Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: []byte(shoot)},
		}})
		if !response.Allowed {
			return errors.New(response.Result.Message)
		}
		return nil
	}
}

func encode(value any) string {
	encoded, err := json.Marshal(value)
	if err != nil {
		panic(err) // strings and numbers can always be encoded
	}
	return string(encoded)
}

func providerConfig(cache fields) string {
	return `{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryConfig","caches":[` + encode(cache) + `]}`
}

// serverRejects returns why the cache server rejects a configuration with these fields.
func serverRejects(cache fields) error {
	document := map[string]any{"upstream": map[string]any{"host": "docker.io", "remoteURL": "https://docker.io"}}
	if cache.Upstream != nil {
		document["upstream"].(map[string]any)["host"] = cache.Upstream
	}
	if cache.RemoteURL != nil {
		document["upstream"].(map[string]any)["remoteURL"] = cache.RemoteURL
	}
	if gc := cache.GarbageCollection; gc != nil {
		storage := map[string]any{}
		if gc.HighWatermark != nil {
			storage["highWatermark"] = gc.HighWatermark
		}
		if gc.LowWatermark != nil {
			storage["lowWatermark"] = gc.LowWatermark
		}
		document["storage"] = storage
		if gc.TTL != nil {
			document["garbageCollection"] = map[string]any{"ttl": gc.TTL}
		}
	}
	_, err := config.Parse([]byte(encode(document)))
	return err
}

// nodesReject returns why nodes get no configuration for a cache with this status.
func nodesReject(upstream, remoteURL string) error {
	_, skipped := nodeconfig.New([]v1alpha3.RegistryCacheStatus{{Upstream: upstream, Endpoint: "http://10.96.0.10:5000", RemoteURL: remoteURL}}, "")
	if len(skipped) > 0 {
		return skipped[0].Reason
	}
	return nil
}

// deploy checks that the controller deploys an admitted cache so that its server and the nodes work with it.
func deploy(t *testing.T, raw fields) {
	t.Helper()
	decoded, errs := registry.Decode([]byte(providerConfig(raw)), nil)
	if len(errs) > 0 {
		t.Fatalf("admitted, but the controller rejects it: %v", errs)
	}
	cache := decoded.Caches[0]
	remote, err := url.Parse(*cache.RemoteURL)
	if err != nil {
		t.Fatal(err)
	}
	for _, engine := range []configv1alpha1.Engine{configv1alpha1.Distribution, configv1alpha1.RegistryCache} {
		if engine == configv1alpha1.Distribution && remote.Path != "" {
			continue // it does not support a path, and the reconciliation reports that
		}
		objects, err := desired.Workload(cache, cache.Volume.Size.Value(), desired.Secrets{Certificate: &desired.Certificate{}}, desired.Options{Image: "image", Engine: engine})
		if err != nil {
			t.Fatalf("admitted, but cannot be deployed: %v", err)
		}
		for _, object := range objects {
			switch object := object.(type) {
			case *corev1.Secret:
				if document, ok := object.Data["config.yaml"]; ok {
					checkServer(t, cache, document)
				}
			case *appsv1.StatefulSet:
				checkProxy(t, object.Spec.Template.Spec.Containers[0].Env)
			}
		}
	}

	status := v1alpha3.RegistryCacheStatus{Upstream: cache.Upstream, Endpoint: desired.Endpoint(cache, "10.96.0.10"), RemoteURL: *cache.RemoteURL}
	status.Endpoint = strings.Replace(status.Endpoint, "https:", "http:", 1) // no roots in this test
	node, skipped := nodeconfig.New([]v1alpha3.RegistryCacheStatus{status}, "")
	if len(skipped) > 0 {
		t.Fatalf("deployed, but nodes get no configuration: %v", skipped)
	}
	var hosts string
	for _, file := range node.Files {
		if file.Path == nodeconfig.HostsDirectory+"/"+cache.Upstream+"/hosts.toml" {
			hosts = file.Content.Inline.Data
		}
	}
	server := "\nserver = \"" + *cache.RemoteURL + "\"\n\n["
	if remote.Path != "" {
		server = fmt.Sprintf("\nserver = \"%s://%s/v2%s\"\noverride_path = true\n\n[", remote.Scheme, remote.Host, remote.Path)
	}
	if !strings.Contains(hosts, server) || !strings.Contains(hosts, "\n[host.\""+status.Endpoint+"\"]\n") {
		t.Errorf("nodes get %q, want %q and %q in it", hosts, *cache.RemoteURL, status.Endpoint)
	}
}

// checkServer checks that the server accepts its configuration and works with the values that the controller has decoded.
func checkServer(t *testing.T, cache v1alpha3.RegistryCache, document []byte) {
	t.Helper()
	server, err := config.Parse(document)
	if err != nil {
		t.Fatalf("deployed, but the server rejects its configuration: %v\n%s", err, document)
	}
	if server.Upstream.Host != cache.Upstream || server.Upstream.RemoteURL != *cache.RemoteURL {
		t.Errorf("the server caches %q at %q, nodes use %q and %q", server.Upstream.Host, server.Upstream.RemoteURL, cache.Upstream, *cache.RemoteURL)
	}
	gc, limits := cache.GarbageCollection, server.Limits()
	if limits.TTL != gc.TTL.Duration || limits.HighWatermark != int(*gc.HighWatermark) || limits.LowWatermark != int(*gc.LowWatermark) {
		t.Errorf("the server evicts by %+v, admitted was %s", limits, encode(gc))
	}
	registryClient, err := upstream.New(server.Upstream.RemoteURL, upstream.Options{})
	if err != nil {
		t.Fatalf("deployed, but the server does not start: %v", err)
	}
	registryClient.Close()
}

// checkProxy checks that the server's library uses the proxies of the environment, and that each exception has an effect.
func checkProxy(t *testing.T, environment []corev1.EnvVar) {
	t.Helper()
	var proxies httpproxy.Config
	for _, variable := range environment {
		switch variable.Name {
		case "HTTP_PROXY":
			proxies.HTTPProxy = variable.Value
		case "HTTPS_PROXY":
			proxies.HTTPSProxy = variable.Value
		case "NO_PROXY":
			proxies.NoProxy = variable.Value
		}
	}
	for scheme, want := range map[string]string{"http": proxies.HTTPProxy, "https": proxies.HTTPSProxy} {
		all := proxies
		all.NoProxy = ""
		used, err := all.ProxyFunc()(&url.URL{Scheme: scheme, Host: "registry.example.com"})
		got := ""
		if used != nil {
			got = used.String()
		}
		if err != nil || got != want {
			t.Errorf("%s: the server uses the proxy %q, %v, want %q", scheme, got, err, want)
		}
	}
	if proxies.NoProxy == "" {
		return
	}
	proxies.HTTPSProxy = "http://proxy.example.com:3128"
	for entry := range strings.SplitSeq(proxies.NoProxy, ",") {
		// Only this entry, so that another one cannot have the effect.
		alone := httpproxy.Config{HTTPSProxy: proxies.HTTPSProxy, NoProxy: entry}
		used, err := alone.ProxyFunc()(&url.URL{Scheme: "https", Host: matching(entry)})
		if err != nil || used != nil {
			t.Errorf("noProxy %q has no effect: %s is reached by %v, %v", entry, matching(entry), used, err)
		}
	}
}

// matching returns a host, with a port if the entry has one, to which an entry of NO_PROXY applies.
func matching(entry string) string {
	if entry == "*" {
		return "registry.example.com"
	}
	address, _, isRange := strings.Cut(entry, "/")
	if isRange || strings.Count(address, ":") > 1 && !strings.HasPrefix(address, "[") {
		if strings.Contains(address, ":") {
			return "[" + address + "]"
		}
		return address
	}
	if domain, found := strings.CutPrefix(strings.TrimPrefix(entry, "*"), "."); found {
		return "sub." + domain
	}
	return entry
}

// check compares the verdicts of all programs about a cache, as a whole and field by field.
func check(t *testing.T, admit admit, cache fields) {
	t.Helper()
	docker := "docker.io"
	same := func(field, value string, alone fields, others map[string]error) {
		t.Helper()
		admitted := admit(alone)
		_, errs := registry.Decode([]byte(providerConfig(alone)), nil)
		others["controller"] = errs.ToAggregate()
		for program, err := range others {
			if (err == nil) != (admitted == nil) {
				t.Errorf("%s %.200q: admission: %v; %s: %v", field, value, admitted, program, err)
			}
		}
	}
	if host := cache.Upstream; host != nil {
		same("upstream", *host, fields{Upstream: host}, map[string]error{
			"server": serverRejects(fields{Upstream: host}), "nodes": nodesReject(*host, "https://docker.io"),
		})
	}
	if remote := cache.RemoteURL; remote != nil {
		same("remoteURL", *remote, fields{Upstream: &docker, RemoteURL: remote}, map[string]error{
			"server": serverRejects(fields{RemoteURL: remote}), "nodes": nodesReject(docker, *remote),
		})
	}
	if gc := cache.GarbageCollection; gc != nil {
		alone := fields{Upstream: &docker, GarbageCollection: gc}
		same("garbageCollection", encode(gc), alone, map[string]error{"server": serverRejects(alone)})
	}
	if cache.Proxy != nil {
		same("proxy", encode(cache.Proxy), fields{Upstream: &docker, Proxy: cache.Proxy}, map[string]error{})
	}
	if admit(cache) == nil {
		deploy(t, cache)
	}
}

// FuzzPrograms checks that every admitted cache is deployed, works on the nodes, and is accepted by its server, and that
// each program rejects the values that the others reject. mask selects the fields that are given, by bits from 1 on:
// remoteURL, httpProxy, httpsProxy, noProxy, ttl, highWatermark and lowWatermark.
func FuzzPrograms(f *testing.F) {
	const all = 0b1111111
	add := func(upstream, remoteURL, proxyURL, noProxy, ttl string, high, low int32, mask uint8) {
		f.Add(upstream, remoteURL, proxyURL, proxyURL, noProxy, ttl, high, low, mask)
	}
	add("docker.io", "https://registry-1.docker.io", "http://proxy.example.com:3128", ".example.com,10.0.0.0/8", "168h", 90, 80, all)
	add("ghcr.io", "HTTPS://ghcr.io", "HTTP://Proxy:3128/", "*.Example.com:443 , [FD00::1]:0443", "0s", 100, 99, all)
	add("ghcr.io:443", "https://ghcr.io/#", "http://[FD00::1]:3128#", "*", "1ns", 1, 0, all)
	add("1:30", "http://[::ffff:10.1.2.3]:5000", "https://0x10", "::/0,fd00::1,10.1.2.3:443", "2562047h47m16.854775807s", 5, 0, 0b0111111)
	add("0x10", "https://user:secret@ghcr.io", "http://$(HOME)", "fe80::1%eth0", "-1s", 101, -1, all)
	add("[::1]:5000", "https://ghcr.io:00443", "proxy:3128", "a:0", "7d", 0, 0, all)
	add("docker.io.", "https://ghcr.io?", "http://gh\u212acr.io", "a,", "", 50, 50, 0b1100000)
	add(strings.Repeat("a.", 124)+"io:65535", "https://xn--bcher-kva.example", "http://b\x7f", "a\n", "1h", 90, 95, 0b1000001)
	// Every case of the table, in an arbitrary combination.
	hosts, urls, exceptions := contracttest.Hosts(), contracttest.URLs(), contracttest.NoProxies()
	for i, tc := range urls {
		add(hosts[i%len(hosts)].Input, tc.Input, urls[(i+7)%len(urls)].Input, exceptions[i%len(exceptions)].Input, "1h", int32(i%110), int32(i%100), uint8(i))
	}
	admit := newAdmission(f)
	f.Fuzz(func(t *testing.T, upstream, remoteURL, httpProxy, httpsProxy, noProxy, ttl string, high, low int32, mask uint8) {
		given := func(bit int, value string) *string {
			if mask&(1<<bit) == 0 {
				return nil
			}
			// JSON contains Unicode only.
			return new(strings.ToValidUTF8(value, "\ufffd"))
		}
		cache := fields{Upstream: new(strings.ToValidUTF8(upstream, "\ufffd")), RemoteURL: given(0, remoteURL)}
		if mask&0b0001110 != 0 {
			cache.Proxy = &proxy{HTTPProxy: given(1, httpProxy), HTTPSProxy: given(2, httpsProxy), NoProxy: given(3, noProxy)}
		}
		if mask&0b1110000 != 0 {
			cache.GarbageCollection = &collection{TTL: given(4, ttl)}
			if mask&(1<<5) != 0 {
				cache.GarbageCollection.HighWatermark = &high
			}
			if mask&(1<<6) != 0 {
				cache.GarbageCollection.LowWatermark = &low
			}
		}
		check(t, admit, cache)
	})
}
