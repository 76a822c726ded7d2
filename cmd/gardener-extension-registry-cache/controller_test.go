// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// controllerDiscovery has the discovery documents that the controller requests before its first object, by URL path.
var controllerDiscovery = map[string]string{
	"/api":    `{"kind":"APIVersions","versions":["v1"]}`,
	"/api/v1": `{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"secrets","kind":"Secret","namespaced":true}]}`,
	"/apis": `{"kind":"APIGroupList","apiVersion":"v1","groups":[
		{"name":"extensions.gardener.cloud","versions":[{"groupVersion":"extensions.gardener.cloud/v1alpha1","version":"v1alpha1"}]},
		{"name":"resources.gardener.cloud","versions":[{"groupVersion":"resources.gardener.cloud/v1alpha1","version":"v1alpha1"}]}]}`,
	"/apis/extensions.gardener.cloud/v1alpha1": `{"kind":"APIResourceList","groupVersion":"extensions.gardener.cloud/v1alpha1","resources":[
		{"name":"operatingsystemconfigs","kind":"OperatingSystemConfig","namespaced":true}]}`,
	"/apis/resources.gardener.cloud/v1alpha1": `{"kind":"APIResourceList","groupVersion":"resources.gardener.cloud/v1alpha1","resources":[
		{"name":"managedresources","kind":"ManagedResource","namespaced":true}]}`,
}

func TestInvalidFlags(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, flag, want string }{
		{"missing configuration file", "--config=/nowhere/config.yaml", "opening the controller configuration: open /nowhere/config.yaml: no such file or directory"},
		{"log level", "--log-level=loud", "reading flags: invalid --log-level: loud"},
		{"heartbeat", "--heartbeat-renew-interval-seconds=0", "--heartbeat-renew-interval-seconds must be greater than 0"},
		{"webhook", "--disable-webhooks=typo", `reading flags: cannot disable unknown webhook "typo"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if err := execute(t, tc.flag); err == nil || err.Error() != tc.want {
				t.Errorf("got error %v, want %s", err, tc.want)
			}
		})
	}
}

// The API server of this test forbids all objects. With the flags of the chart, the controller must start up to its
// first request for an object, the certificate of the webhook server.
func TestStartWithFlagsOfChart(t *testing.T) {
	t.Parallel()
	err := execute(t, "--leader-election-namespace=n", "--heartbeat-namespace=n", "--max-concurrent-reconciles=5",
		"--ignore-operation-annotation=false", "--webhook-config-mode=service", "--webhook-config-namespace=n",
		"--webhook-config-server-port=10250", "--webhook-config-service-port=443", "--webhook-config-cert-dir="+t.TempDir(),
		"--metrics-bind-address=0", "--health-bind-address=127.0.0.1:0", "--gardener-version=v1.147.1", "--log-level=error", "--log-format=json")
	if !apierrors.IsForbidden(err) || !strings.HasPrefix(err.Error(), "adding webhooks: ") || !strings.HasSuffix(err.Error(), "forbidden: /api/v1/namespaces/n/secrets") {
		t.Errorf("got error %v, want one about forbidden Secrets", err)
	}
}

// With client-go's default rate limit of 5 requests per second, 125 requests would take more than 20 seconds.
func TestSeedClientRateLimit(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if _, err := io.WriteString(w, `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"s","namespace":"n"}}`); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	kube, err := kubernetes.NewForConfig(seedClientConfig(&rest.Config{Host: server.URL}))
	if err != nil {
		t.Fatal(err)
	}
	// The rate limiter immediately fails a request that would have to wait until after the deadline.
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	for n := range 125 {
		if _, err := kube.CoreV1().Secrets("n").Get(ctx, "s", metav1.GetOptions{}); err != nil {
			t.Fatalf("request %d: %v", n, err)
		}
	}
}

// Without this test, an unknown flag in the chart would be found only when the pod fails to start.
func TestChartSetsKnownFlags(t *testing.T) {
	t.Parallel()
	template, err := os.ReadFile("../../charts/gardener-extension-registry-cache/templates/deployment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	flags := newControllerCommand().Flags()
	chartFlags := regexp.MustCompile(`(?m)^\s*- --([a-z-]+)`).FindAllSubmatch(template, -1)
	if len(chartFlags) < 10 {
		t.Errorf("found only %d flags in the chart: the regular expression of this test does not match its template", len(chartFlags))
	}
	for _, match := range chartFlags {
		if flags.Lookup(string(match[1])) == nil {
			t.Errorf("the chart sets the unknown flag --%s", match[1])
		}
	}
}

// execute runs the subcommand controller against an API server that serves discovery documents and forbids all objects.
func execute(t *testing.T, args ...string) error {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if document, ok := controllerDiscovery[r.URL.Path]; ok {
			io.WriteString(w, document)
			return
		}
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"forbidden: `+r.URL.Path+`"}`)
	}))
	t.Cleanup(server.Close)
	kubeconfig := clientcmdapi.NewConfig()
	kubeconfig.Clusters["c"] = &clientcmdapi.Cluster{Server: server.URL}
	kubeconfig.Contexts["c"] = &clientcmdapi.Context{Cluster: "c"}
	kubeconfig.CurrentContext = "c"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*kubeconfig, path); err != nil {
		t.Fatal(err)
	}
	o := newControllerOptions()
	flags := pflag.NewFlagSet("controller", pflag.ContinueOnError)
	o.addFlags(flags)
	if err := flags.Parse(append(args, "--kubeconfig="+path)); err != nil {
		t.Fatal(err)
	}
	if err := o.complete(); err != nil {
		return err
	}
	return o.run(t.Context())
}
