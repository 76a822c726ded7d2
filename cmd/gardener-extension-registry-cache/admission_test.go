// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

const (
	admissionChart  = "gardener-extension-registry-cache-admission"
	admissionConfig = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/" + admissionChart
)

// unexercised are permissions that a test run may end without using, each with the reason.
var unexercised = map[string]string{
	"update coordination.k8s.io/leases": "the lease is renewed only after two seconds",
	"create /events":                    "events are sent asynchronously",
	"patch /events":                     "repetitions of an event, sent asynchronously",
	"create events.k8s.io/events":       "the newer API of events",
	"patch events.k8s.io/events":        "the newer API of events",
}

// The admission runs with the arguments and permissions of the charts: those of the chart runtime in the runtime
// cluster, those of the chart application in the virtual garden. The test then calls the webhook as the API server of
// the garden does: with URL, path and certificate authority of the ValidatingWebhookConfiguration that the admission
// has created.
func TestAdmissionForVirtualGarden(t *testing.T) {
	t.Parallel()
	runtimeObjects := renderAdmission(t, "runtime", "garden", map[string]any{"gardener": map[string]any{
		"runtimeCluster": map[string]any{"priorityClassName": "gardener-garden-system-400"},
		"virtualCluster": map[string]any{"enabled": true, "namespace": "extension-registry-cache"},
	}})
	gardenObjects := renderAdmission(t, "application", "extension-registry-cache", map[string]any{"gardener": map[string]any{
		"virtualCluster": map[string]any{"enabled": true, "serviceAccount": map[string]any{"name": "extension-admission-registry-cache", "namespace": "kube-system"}},
	}})
	runtimeRules, gardenRules := rules(t, runtimeObjects), rules(t, gardenObjects)
	runtimeCluster, garden := newFakeAPIServer(t, runtimeRules), newFakeAPIServer(t, gardenRules)
	garden.put("/api/v1/namespaces/extension-registry-cache", map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "extension-registry-cache"}})
	// An obsolete certificate, which the admission must delete.
	runtimeCluster.put("/api/v1/namespaces/garden/secrets/obsolete", map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{
		"name": "obsolete", "namespace": "garden", "labels": map[string]any{
			"name": "obsolete", "managed-by": "secrets-manager", "manager-identity": admissionChart + "-webhook",
		},
	}})

	p := startAdmission(t, runtimeObjects, garden, runtimeCluster.config())
	config := p.waitForWebhook(t, garden)
	webhook := config.Webhooks[0]
	wantURL := "https://" + admissionChart + ".garden:443/webhooks/shoots"
	if webhook.ClientConfig.URL == nil || *webhook.ClientConfig.URL != wantURL || webhook.ClientConfig.Service != nil {
		t.Fatalf("got client config %v, want URL %s", webhook.ClientConfig, wantURL)
	}
	if len(config.OwnerReferences) != 1 || config.OwnerReferences[0].Name != "extension-registry-cache" {
		t.Errorf("owner references %v, want only the namespace of the extension", config.OwnerReferences)
	}
	address, err := url.Parse(*webhook.ClientConfig.URL)
	if err != nil {
		t.Fatal(err)
	}
	p.checkResponses(t, garden, webhook, address.Hostname(), address.Path)
	if paths := slices.Concat(garden.paths("leases"), runtimeCluster.paths(admissionChart), garden.paths("/secrets/ca-"), garden.paths("-webhook-server")); len(paths) > 0 {
		t.Errorf("objects in the wrong cluster: %v", paths)
	}
	waitFor(t, "the deletion of the obsolete certificate", func() bool { return len(runtimeCluster.paths("/secrets/obsolete")) == 0 })
	p.stop(t)

	checkPermissions(t, "runtime", runtimeCluster, runtimeRules)
	checkPermissions(t, "application", garden, gardenRules)
}

// If the garden is its own runtime cluster, one release of the parent chart installs both subcharts.
func TestAdmissionForGardenWithoutVirtualCluster(t *testing.T) {
	t.Parallel()
	objects := renderAdmission(t, "", "registry-cache", nil)
	garden := newFakeAPIServer(t, rules(t, objects))
	garden.put("/api/v1/namespaces/registry-cache", map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "registry-cache"}})
	p := startAdmission(t, objects, garden, nil)
	webhook := p.waitForWebhook(t, garden).Webhooks[0]
	want := &admissionregistrationv1.ServiceReference{Namespace: "registry-cache", Name: admissionChart, Path: new("/webhooks/shoots"), Port: new(int32(443))}
	if diff := cmp.Diff(want, webhook.ClientConfig.Service); diff != "" {
		t.Fatalf("-want +got:\n%s", diff)
	}
	p.checkResponses(t, garden, webhook, want.Name+"."+want.Namespace+".svc", *want.Path)
	p.stop(t)
	if _, denied := garden.permissions(); len(denied) > 0 {
		t.Errorf("denied requests: %v", denied)
	}
}

func TestAdmissionFailsWithoutPermissions(t *testing.T) {
	t.Parallel()
	garden := newFakeAPIServer(t, nil)
	o := admissionFlags(t, "--kubeconfig="+garden.kubeconfig(t), "--webhook-config-namespace=garden", "--metrics-bind-address=0", "--health-bind-address=127.0.0.1:0",
		"--webhook-config-cert-dir="+t.TempDir(), "--leader-election-namespace=garden", "--log-level=error", "--log-format=json")
	if err := o.run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "forbidden: list /api/v1/namespaces/garden/secrets") {
		t.Errorf("got error %v, want one about forbidden Secrets", err)
	}
}

// admissionProcess is a running admission, in the process of the test.
type admissionProcess struct {
	port   int        // of the webhook server, on 127.0.0.1
	done   chan error // the result of run
	cancel context.CancelFunc
}

// startAdmission runs the admission with the arguments of the Deployment in objects. Kubeconfig, addresses, ports and
// log level are replaced.
func startAdmission(t *testing.T, objects []runtime.Object, garden *fakeAPIServer, runtimeConfig *rest.Config) *admissionProcess {
	t.Helper()
	var args []string
	for _, obj := range objects {
		if deployment, ok := obj.(*appsv1.Deployment); ok {
			args = deployment.Spec.Template.Spec.Containers[0].Args
		}
	}
	if len(args) < 10 || args[0] != "admission" {
		t.Fatalf("arguments of the Deployment: %v, want admission and its flags", args)
	}
	port := freePort(t)
	// The last value of a repeated flag overrides the earlier ones.
	o := admissionFlags(t, append(args[1:], "--kubeconfig="+garden.kubeconfig(t), fmt.Sprintf("--webhook-config-server-port=%d", port), "--webhook-config-server-host=127.0.0.1",
		"--webhook-config-cert-dir="+t.TempDir(), "--metrics-bind-address=0", "--health-bind-address=127.0.0.1:0", "--log-level=error")...)
	ctx, cancel := context.WithCancel(t.Context())
	p := &admissionProcess{port: port, done: make(chan error, 1), cancel: cancel}
	go func() { p.done <- o.run(ctx, runtimeConfig) }()
	t.Cleanup(cancel)
	return p
}

// admissionFlags returns the options for the command-line flags.
func admissionFlags(t *testing.T, args ...string) *admissionOptions {
	t.Helper()
	o := newAdmissionOptions()
	o.skipNameValidation = true
	flags := pflag.NewFlagSet("admission", pflag.ContinueOnError)
	o.addFlags(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	return o
}

func (p *admissionProcess) stop(t *testing.T) {
	t.Helper()
	p.cancel()
	if err := <-p.done; err != nil {
		t.Errorf("the admission ended with error %v", err)
	}
}

// waitForWebhook waits until the ValidatingWebhookConfiguration contains a certificate authority, checks the webhook in
// it, and returns the configuration.
func (p *admissionProcess) waitForWebhook(t *testing.T, garden *fakeAPIServer) *admissionregistrationv1.ValidatingWebhookConfiguration {
	t.Helper()
	config := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	waitFor(t, "the ValidatingWebhookConfiguration", func() bool {
		select {
		case err := <-p.done:
			t.Fatalf("the admission ended with error %v", err)
		default:
		}
		return garden.read(t, admissionConfig, config) && len(config.Webhooks) == 1 && len(config.Webhooks[0].ClientConfig.CABundle) > 0
	})
	got := config.Webhooks[0]
	want := admissionregistrationv1.ValidatingWebhook{
		Name:                    "shoots.registry-cache-admission.extensions.gardener.cloud",
		AdmissionReviewVersions: []string{"v1", "v1beta1"},
		FailurePolicy:           new(admissionregistrationv1.Fail),
		MatchPolicy:             new(admissionregistrationv1.Exact),
		SideEffects:             new(admissionregistrationv1.SideEffectClassNone),
		TimeoutSeconds:          new(int32(10)),
		ObjectSelector:          &metav1.LabelSelector{MatchLabels: map[string]string{"extensions.extensions.gardener.cloud/registry-cache": "true"}},
		Rules: []admissionregistrationv1.RuleWithOperations{{
			Operations: []admissionregistrationv1.OperationType{"CREATE", "UPDATE"},
			Rule:       admissionregistrationv1.Rule{APIGroups: []string{"core.gardener.cloud"}, APIVersions: []string{"v1beta1"}, Resources: []string{"shoots"}},
		}},
		ClientConfig: got.ClientConfig,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	return config
}

// checkResponses sends reviews of Shoots to the webhook, as the API server of the garden does, with the host name of
// the webhook configuration.
func (p *admissionProcess) checkResponses(t *testing.T, garden *fakeAPIServer, webhook admissionregistrationv1.ValidatingWebhook, host, path string) {
	t.Helper()
	garden.put("/api/v1/namespaces/garden-dev/secrets/present", map[string]any{
		"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": "present", "namespace": "garden-dev"}, "immutable": true,
		"data": map[string]any{"username": "cm9ib3Q=", "password": "aHVudGVyMg=="},
	})
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(webhook.ClientConfig.CABundle) {
		t.Fatal("the CA bundle of the webhook contains no certificate")
	}
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: host},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", p.port))
		},
	}}
	defer client.CloseIdleConnections()
	for secret, want := range map[string]string{
		"present": "",
		"missing": `Secret "missing", to which the entry of spec.resources refers, must exist in the namespace of the Shoot`,
	} {
		response := review(t, client, "https://"+host+path, secret)
		if response.Allowed != (want == "") || response.Result == nil || !strings.Contains(response.Result.Message, want) {
			t.Errorf("Secret %s: got response %+v, want message %q", secret, response, want)
		}
	}
}

// review sends the review of a Shoot that refers to the Secret, and returns the response of the webhook.
func review(t *testing.T, client *http.Client, address, secret string) *admissionv1.AdmissionResponse {
	t.Helper()
	shoot, err := yaml.YAMLToJSON([]byte(`
apiVersion: core.gardener.cloud/v1beta1
kind: Shoot
metadata: {name: crazy-botany, namespace: garden-dev}
spec:
  resources: [{name: credentials, resourceRef: {apiVersion: v1, kind: Secret, name: ` + secret + `}}]
  extensions:
  - type: registry-cache
    providerConfig: {apiVersion: registry.extensions.gardener.cloud/v1alpha3, kind: RegistryConfig, caches: [{upstream: docker.io, secretReferenceName: credentials}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: "1", Kind: metav1.GroupVersionKind{Group: "core.gardener.cloud", Version: "v1beta1", Kind: "Shoot"},
			Operation: admissionv1.Create, Namespace: "garden-dev", Name: "crazy-botany", Object: runtime.RawExtension{Raw: shoot},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Post(address, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	answer := admissionv1.AdmissionReview{}
	if err := json.Unmarshal(text, &answer); err != nil || answer.Response == nil {
		t.Fatalf("%s: %s, %v", response.Status, text, err)
	}
	return answer.Response
}

// checkPermissions checks that the chart grants all permissions that the admission needs and no others. Permissions in
// unexercised may be unused.
func checkPermissions(t *testing.T, chart string, server *fakeAPIServer, rules map[string][]rbacv1.PolicyRule) {
	t.Helper()
	used, denied := server.permissions()
	for _, request := range denied {
		t.Errorf("chart %s: denied request: %s", chart, request)
	}
	for _, rule := range slices.Concat(rules[""], rules["garden"]) {
		for _, verb := range rule.Verbs {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					granted := permission(verb, group, resource)
					if _, excused := unexercised[granted]; !excused && !slices.Contains(used, granted) {
						t.Errorf("chart %s: unused permission: %s", chart, granted)
					}
				}
			}
		}
	}
}

// renderAdmission renders the parent chart, or the given subchart if it is not empty. It returns the Deployments, Roles
// and ClusterRoles.
func renderAdmission(t *testing.T, subchart, namespace string, values map[string]any) []runtime.Object {
	t.Helper()
	dir := "../../charts/" + admissionChart
	if subchart != "" {
		dir += "/charts/" + subchart
	}
	chart, err := loader.LoadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := chartutil.ProcessDependencies(chart, values); err != nil {
		t.Fatal(err)
	}
	all, err := util.ToRenderValues(chart, values, common.ReleaseOptions{Name: "registry-cache", Namespace: namespace, IsInstall: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Engine{Strict: true}.Render(chart, all)
	if err != nil {
		t.Fatal(err)
	}
	var objects []runtime.Object
	for name, content := range files {
		for document := range strings.SplitSeq(content, "\n---\n") {
			var meta metav1.TypeMeta
			if err := yaml.Unmarshal([]byte(document), &meta); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			obj, ok := map[string]runtime.Object{"Deployment": &appsv1.Deployment{}, "Role": &rbacv1.Role{}, "ClusterRole": &rbacv1.ClusterRole{}}[meta.Kind]
			if !ok {
				continue
			}
			if err := yaml.UnmarshalStrict([]byte(document), obj); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			objects = append(objects, obj)
		}
	}
	return objects
}

// rules returns the rules of Roles by namespace, and those of ClusterRoles under "".
func rules(t *testing.T, objects []runtime.Object) map[string][]rbacv1.PolicyRule {
	t.Helper()
	all := map[string][]rbacv1.PolicyRule{}
	for _, obj := range objects {
		switch role := obj.(type) {
		case *rbacv1.Role:
			all[role.Namespace] = append(all[role.Namespace], role.Rules...)
		case *rbacv1.ClusterRole:
			all[""] = append(all[""], role.Rules...)
		}
	}
	if len(all) == 0 {
		t.Fatal("the chart has no roles")
	}
	return all
}

// waitFor polls until done returns true. The test fails after 30 s; event names the expected event in the message.
func waitFor(t *testing.T, event string, done func() bool) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 10*time.Millisecond, 30*time.Second, true, func(context.Context) (bool, error) { return done(), nil })
	if err != nil {
		t.Fatalf("waiting for %s: %v", event, err)
	}
}

// freePort returns a TCP port on 127.0.0.1 that was free during the call.
func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}
