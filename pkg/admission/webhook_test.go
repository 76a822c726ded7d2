// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/cert"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/yaml"
)

const (
	config = "spec.extensions[0].providerConfig"
	// credentials is how the message about the only cache's credentials begins.
	credentials = config + ".caches[0].secretReferenceName: "
	notYours    = "the Shoot cannot be checked, which is not a mistake in it: "
)

// spec is what a Shoot says about caches in these tests.
type spec struct {
	// version is v1alpha3 if it is empty.
	version string
	caches  string
	// secret is the name of the Secret to which the only entry of spec.resources, credentials, refers.
	secret string
	// extension is put beside the provider config, rest beside the extensions, metadata into the Shoot's.
	extension, rest, metadata string
	// raw replaces the whole of spec.extensions.
	raw string
}

func (s spec) manifest() string {
	version := s.version
	if version == "" {
		version = "v1alpha3"
	}
	extensions := "[{type: registry-cache, " + s.extension + "providerConfig: {apiVersion: registry.extensions.gardener.cloud/" + version + ", kind: RegistryConfig, caches: [" + s.caches + "]}}]"
	if s.raw != "" {
		extensions = s.raw
	}
	if s.secret != "" {
		s.rest += "resources: [{name: credentials, resourceRef: {apiVersion: v1, kind: Secret, name: " + s.secret + "}}],"
	}
	return "{apiVersion: core.gardener.cloud/v1beta1, kind: Shoot, metadata: {name: crazy-botany, namespace: garden-dev" + s.metadata + "}, spec: {" + s.rest + "extensions: " + extensions + "}}"
}

func TestShoots(t *testing.T) {
	t.Parallel()
	server := start(t, map[string]string{
		"good":        `{"immutable":true,"data":{"username":"cm9ib3Q=","password":"aHVudGVyMg=="}}`,
		"also-good":   `{"immutable":true,"data":{"username":"cm9ib3Q=","password":"aHVudGVyMw=="}}`,
		"no-password": `{"immutable":true,"data":{"username":"cm9ib3Q="}}`,
		"mutable":     `{"data":{"username":"cm9ib3Q=","password":"aHVudGVyMg=="}}`,
		"forbidden":   "403",
		"broken":      "500",
	})
	const (
		private = "{upstream: docker.io, secretReferenceName: credentials}"
		shrink  = config + `.caches[0].volume.size: Invalid value: "5Gi": must not be less than before, write at least 10Gi: a volume cannot shrink; to start with an empty volume, remove the cache and add it again when it is gone`
	)
	for _, tc := range []struct {
		name string
		// old is nil for a new Shoot.
		shoot spec
		old   *spec
		// want are the causes of the refusal.
		want []string
		// code is 422 where there are causes and none is given.
		code int32
	}{
		{name: "create", shoot: spec{caches: "{upstream: docker.io}, {upstream: ghcr.io, volume: {size: 20Gi}}"}},
		{name: "create with v1alpha1", shoot: spec{version: "v1alpha1", caches: "{upstream: docker.io, size: 100Gi}"}},
		{name: "without our extension", shoot: spec{raw: "[{type: shoot-dns-service, providerConfig: {a: b}}]"}},
		{name: "without any extension", shoot: spec{raw: "[]"}},
		{name: "without providerConfig", shoot: spec{raw: "[{type: registry-cache}]"}, want: []string{
			config + ": Required value: must be a RegistryConfig of registry.extensions.gardener.cloud/v1alpha3",
		}},
		{name: "bad", shoot: spec{caches: "{upstream: 'https://docker.io'}, {upstream: ghcr.io, volume: {size: 0}}"}, want: []string{
			config + `.caches[0].upstream: Invalid value: "https://docker.io": must be host[:port], for example docker.io, without a scheme; write "docker.io"`,
			config + `.caches[1].volume.size: Invalid value: "0": must be greater than 0, for example 10Gi`,
		}},
		{name: "size of the first version", shoot: spec{version: "v1alpha1", caches: "{upstream: docker.io, size: 0}"}, want: []string{
			config + `.caches[0].size: Invalid value: "0": must be greater than 0, for example 10Gi`,
		}},

		{name: "larger", shoot: spec{caches: "{upstream: docker.io, volume: {size: 20Gi}}"}, old: &spec{caches: "{upstream: docker.io}"}},
		{name: "smaller", shoot: spec{caches: "{upstream: docker.io, volume: {size: 5Gi}}"}, old: &spec{caches: "{upstream: docker.io}"}, want: []string{shrink}},
		{name: "smaller than in the first version", shoot: spec{caches: "{upstream: docker.io, volume: {size: 5Gi}}"}, old: &spec{version: "v1alpha1", caches: "{upstream: docker.io}"}, want: []string{shrink}},
		{name: "another StorageClass", shoot: spec{caches: "{upstream: docker.io, volume: {storageClassName: fast}}"}, old: &spec{caches: "{upstream: docker.io}"}, want: []string{
			config + `.caches[0].volume.storageClassName: Invalid value: "fast": must stay left out; to start with an empty volume, remove the cache and add it again when it is gone`,
		}},
		{name: "replaced by one whose objects have the same names", shoot: spec{caches: "{upstream: my-reg.io}"}, old: &spec{caches: "{upstream: my.reg.io}"}, want: []string{
			config + `.caches[0].upstream: Invalid value: "my-reg.io": its objects in the Shoot would be named "registry-my-reg-io" like those of "my.reg.io", which this change removes; give the cache of "my-reg.io" a serviceNameSuffix (a field of v1alpha3), or remove the other one first and add this one when it is gone`,
		}},
		{name: "the same in two steps: removed", shoot: spec{caches: "{upstream: docker.io}"}, old: &spec{caches: "{upstream: docker.io}, {upstream: my.reg.io}"}},
		{name: "the same in two steps: added", shoot: spec{caches: "{upstream: docker.io}, {upstream: my-reg.io}"}, old: &spec{caches: "{upstream: docker.io}"}},
		{name: "the same with a suffix", shoot: spec{caches: "{upstream: my-reg.io, serviceNameSuffix: mine}"}, old: &spec{caches: "{upstream: my.reg.io}"}},

		{name: "Secret", shoot: spec{caches: private, secret: "good"}},
		{name: "Secret is missing", shoot: spec{caches: private, secret: "missing"}, want: []string{
			credentials + `Invalid value: "credentials": Secret "missing", to which the entry of spec.resources refers, must exist in the namespace of the Shoot`,
		}},
		{name: "Secret without password", shoot: spec{caches: private, secret: "no-password"}, want: []string{
			credentials + `Invalid value: "credentials": Secret "no-password" must have the keys "password", "username" and no others; it has "username"`,
		}},
		{name: "only the referenced Secret changes", shoot: spec{caches: private, secret: "also-good"}, old: &spec{caches: private, secret: "good"}},
		{name: "only the referenced Secret changes, to a bad one", shoot: spec{caches: private, secret: "mutable"}, old: &spec{caches: private, secret: "good"}, want: []string{
			credentials + `Invalid value: "credentials": Secret "mutable" must have "immutable: true"; for new contents, make a new Secret and let the entry of spec.resources refer to that`,
		}},
		{name: "the entry goes", shoot: spec{caches: private}, old: &spec{caches: private, secret: "good"}, want: []string{
			credentials + `Invalid value: "credentials": must be the name of an entry of spec.resources; there is none with this name`,
		}},
		{name: "Secret may not be read", shoot: spec{caches: private, secret: "forbidden"}, code: 500, want: []string{
			credentials + `Internal error: reading Secret "forbidden": ` + notYours + `the admission of the extension registry-cache may not read Secrets, ask the operator of Gardener: forbidden for a reason`,
		}},
		{name: "the garden fails", shoot: spec{caches: private, secret: "broken"}, code: 500, want: []string{
			credentials + `Internal error: reading Secret "broken": ` + notYours + `the API server of the garden does not answer, try again later: broken for a reason`,
		}},
		{name: "the garden fails, and there is a mistake", shoot: spec{caches: private + ", {upstream: ''}", secret: "broken"}, want: []string{
			config + `.caches[1].upstream: Required value: must be host[:port], for example docker.io`,
			credentials + `Internal error: reading Secret "broken": ` + notYours + `the API server of the garden does not answer, try again later: broken for a reason`,
		}},

		{name: "mirrored, too", shoot: spec{raw: "[{type: registry-cache, providerConfig: {apiVersion: registry.extensions.gardener.cloud/v1alpha3, kind: RegistryConfig, caches: [{upstream: docker.io}]}}, " +
			"{type: registry-mirror, providerConfig: {apiVersion: mirror.extensions.gardener.cloud/v1alpha1, kind: MirrorConfig, mirrors: [{upstream: docker.io, hosts: [{host: 'https://mirror.example.com'}]}]}}]"}, want: []string{
			config + `.caches[0].upstream: Invalid value: "docker.io": an upstream cannot be cached and mirrored at once, and spec.extensions[1].providerConfig.mirrors[0].upstream is the same; remove one of the two`,
		}},
		{name: "workers without a cri", shoot: spec{caches: "{upstream: docker.io}", rest: "provider: {workers: [{name: a}, {name: b, cri: {name: containerd}}]},"}},
		{name: "workers without containerd", shoot: spec{caches: "{upstream: docker.io}", rest: "provider: {workers: [{name: a, cri: {name: docker}}]},"}, want: []string{
			`spec.provider.workers[0].cri.name: Unsupported value: "docker": supported values: "containerd"`,
		}},

		{name: "disabled", shoot: spec{extension: "disabled: true, ", caches: "{upstream: ''}"}},
		{name: "being deleted", shoot: spec{caches: "{upstream: ''}", metadata: ", deletionTimestamp: '2026-01-01T00:00:00Z'"}, old: &spec{caches: "{upstream: docker.io}"}},
		{name: "removed", shoot: spec{raw: "[]"}, old: &spec{caches: "{upstream: docker.io}"}},
		{name: "only metadata of a Shoot that is bad already", shoot: spec{caches: private, secret: "missing", metadata: ", annotations: {gardener.cloud/operation: reconcile}"}, old: &spec{caches: private, secret: "missing"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			response := server.review(t, tc.shoot, tc.old)
			if response.Allowed != (len(tc.want) == 0) {
				t.Fatalf("allowed: %t, %+v", response.Allowed, response.Result)
			}
			if response.Allowed {
				return
			}
			code := tc.code
			if code == 0 {
				code = http.StatusUnprocessableEntity
				var causes []string
				for _, cause := range response.Result.Details.Causes {
					causes = append(causes, cause.Field+": "+cause.Message)
				}
				if diff := cmp.Diff(tc.want, causes); diff != "" {
					t.Errorf("causes: -want +got:\n%s", diff)
				}
			}
			if response.Result.Code != code {
				t.Errorf("got code %d, want %d", response.Result.Code, code)
			}
			for _, want := range tc.want {
				if !strings.Contains(response.Result.Message, want) {
					t.Errorf("got message %s, want %s in it", response.Result.Message, want)
				}
			}
			if strings.Contains(response.Result.Message, "hunter") {
				t.Errorf("the password is repeated: %s", response.Result.Message)
			}
		})
	}
}

// However many mistakes there are, the answer stays short, and a Secret is read once.
func TestAnswersAreBounded(t *testing.T) {
	t.Parallel()
	server := start(t, map[string]string{"good": `{"immutable":true,"data":{"` + strings.Repeat("x", 100_000) + `":""}}`})
	const cache = "{upstream: docker.io, secretReferenceName: credentials}"
	response := server.review(t, spec{caches: strings.Repeat(cache+",", 2000) + cache, secret: "good"}, nil)
	if response.Allowed || len(response.Result.Details.Causes) != 21 || len(response.Result.Message) > 100_000 {
		t.Errorf("allowed: %t, %d causes, %d bytes", response.Allowed, len(response.Result.Details.Causes), len(response.Result.Message))
	}
	if want := "spec: Invalid value: 3981 more errors are not shown"; !strings.Contains(response.Result.Message, want) {
		t.Errorf("got %s, want %s in it", response.Result.Message, want)
	}
	if got := server.garden.requests("/api/v1/namespaces/garden-dev/secrets/good"); got != 1 {
		t.Errorf("the Secret was read %d times", got)
	}
}

func TestWhatIsNoShootIsRefused(t *testing.T) {
	t.Parallel()
	server := start(t, nil)
	for _, tc := range []struct{ name, object, want string }{
		{"another type", `{"apiVersion":"v1","kind":"Secret","data":{"a":"aHVudGVyMg=="}}`, "decoding object of the request: "},
		{"wrong types", `{"apiVersion":"core.gardener.cloud/v1beta1","kind":"Shoot","spec":{"extensions":"hunter2"}}`, "decoding object of the request: "},
		{"nothing", `null`, "decoding object of the request: "},
	} {
		response := server.send(t, &admissionv1.AdmissionRequest{Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: []byte(tc.object)}})
		if response.Allowed || response.Result.Code != http.StatusBadRequest || !strings.HasPrefix(response.Result.Message, tc.want) {
			t.Errorf("%s: got %+v", tc.name, response)
		} else if strings.Contains(response.Result.Message, "hunter2") || strings.Contains(response.Result.Message, "aHVudGVyMg") {
			t.Errorf("%s: the object is repeated: %s", tc.name, response.Result.Message)
		}
	}
}

// A garden that accepts requests and does not answer them must not make the webhook as silent.
func TestSilentGarden(t *testing.T) {
	t.Parallel()
	server := start(t, map[string]string{"silent": "silent"})
	if server.handler.within >= timeoutSeconds*time.Second {
		t.Errorf("the answer may take %s, which the garden does not wait for", server.handler.within)
	}
	server.handler.within = 100 * time.Millisecond
	response := server.review(t, spec{caches: "{upstream: docker.io, secretReferenceName: credentials}", secret: "silent"}, nil)
	if response.Allowed || response.Result.Code != http.StatusInternalServerError {
		t.Errorf("got %+v", response)
	}
	if want := notYours + "the API server of the garden does not answer"; !strings.Contains(response.Result.Message, want) {
		t.Errorf("got %s, want %s in it", response.Result.Message, want)
	}
}

// webhookServer is the real server of controller-runtime with the webhook, and a garden behind it.
type webhookServer struct {
	garden  *garden
	handler *handler
	client  *http.Client
	url     string
}

func start(t *testing.T, secrets map[string]string) *webhookServer {
	t.Helper()
	g := newGarden(t, secrets)
	dir := t.TempDir()
	certificate, key, err := cert.GenerateSelfSignedCertKey("127.0.0.1", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"tls.crt": certificate, "tls.key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()

	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, gardencorev1beta1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	mgr, err := manager.New(&rest.Config{Host: g.server.URL, QPS: -1}, manager.Options{
		Scheme: scheme, Metrics: metricsserver.Options{BindAddress: "0"},
		WebhookServer: webhook.NewServer(webhook.Options{Host: "127.0.0.1", Port: port, CertDir: dir}),
	})
	if err != nil {
		t.Fatal(err)
	}
	hook, err := NewWebhook(mgr)
	if err != nil {
		t.Fatal(err)
	}
	mgr.GetWebhookServer().Register(hook.Path, hook.Webhook)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certificate)
	s := &webhookServer{garden: g, handler: hook.Webhook.Handler.(*handler), url: fmt.Sprintf("https://127.0.0.1:%d%s", port, hook.Path), client: &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	}}
	t.Cleanup(func() {
		s.client.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	ready := mgr.GetWebhookServer().StartedChecker()
	if err := wait.PollUntilContextTimeout(ctx, 10*time.Millisecond, 30*time.Second, true, func(context.Context) (bool, error) { return ready(nil) == nil, nil }); err != nil {
		t.Fatalf("the server has not started: %v", err)
	}
	return s
}

func (s *webhookServer) review(t *testing.T, shoot spec, old *spec) *admissionv1.AdmissionResponse {
	t.Helper()
	request := &admissionv1.AdmissionRequest{Operation: admissionv1.Create, Object: raw(t, shoot)}
	if old != nil {
		request.Operation, request.OldObject = admissionv1.Update, raw(t, *old)
	}
	return s.send(t, request)
}

// send posts an AdmissionReview of v1 as an API server does.
func (s *webhookServer) send(t *testing.T, request *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	t.Helper()
	request.UID, request.Namespace, request.Name = "1", "garden-dev", "crazy-botany"
	request.Kind = metav1.GroupVersionKind{Group: "core.gardener.cloud", Version: "v1beta1", Kind: "Shoot"}
	body, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: request})
	if err != nil {
		t.Fatal(err)
	}
	response, err := s.client.Post(s.url, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(response.Body).Decode(&review); err != nil || review.Response == nil || review.Response.UID != "1" {
		t.Fatalf("%s: %v, %+v", response.Status, err, review)
	}
	return review.Response
}

func raw(t *testing.T, s spec) runtime.RawExtension {
	t.Helper()
	manifest, err := yaml.YAMLToJSON([]byte(s.manifest()))
	if err != nil {
		t.Fatalf("%v in %s", err, s.manifest())
	}
	return runtime.RawExtension{Raw: manifest}
}
