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

// discovery is what an API server tells about itself, as far as the program asks for it before it reads an object.
var discovery = map[string]string{
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

func TestBadInvocations(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, flag, want string }{
		{"no such configuration", "--config=/nowhere/config.yaml", "opening the controller configuration: open /nowhere/config.yaml: no such file or directory"},
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

// With the flags that the chart gives, the program starts up to the point where it reads the certificate of its webhook
// server, which is the first object that it needs.
func TestStart(t *testing.T) {
	t.Parallel()
	err := execute(t, "--leader-election-namespace=n", "--heartbeat-namespace=n", "--max-concurrent-reconciles=5",
		"--ignore-operation-annotation=false", "--webhook-config-mode=service", "--webhook-config-namespace=n",
		"--webhook-config-server-port=10250", "--webhook-config-service-port=443", "--webhook-config-cert-dir="+t.TempDir(),
		"--metrics-bind-address=0", "--health-bind-address=127.0.0.1:0", "--gardener-version=v1.147.1", "--log-level=error", "--log-format=json")
	if !apierrors.IsForbidden(err) || !strings.HasPrefix(err.Error(), "adding webhooks: ") || !strings.HasSuffix(err.Error(), "forbidden: /api/v1/namespaces/n/secrets") {
		t.Errorf("got error %v, want that Secrets cannot be listed", err)
	}
}

// Many Shoots at once need more requests than client-go lets through by default, which would be 5 per second.
func TestSeedClientIsFastEnough(t *testing.T) {
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
	// A request that would have to wait beyond the deadline is refused at once.
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	for n := range 125 {
		if _, err := kube.CoreV1().Secrets("n").Get(ctx, "s", metav1.GetOptions{}); err != nil {
			t.Fatalf("request %d: %v", n, err)
		}
	}
}

// A flag that the program does not know would only show when the pod does not start.
func TestChartGivesKnownFlags(t *testing.T) {
	t.Parallel()
	template, err := os.ReadFile("../../charts/gardener-extension-registry-cache/templates/deployment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	flags := newControllerCommand().Flags()
	given := regexp.MustCompile(`(?m)^\s*- --([a-z-]+)`).FindAllSubmatch(template, -1)
	if len(given) < 10 {
		t.Errorf("found %d flags in the chart, this test does not test what it should", len(given))
	}
	for _, match := range given {
		if flags.Lookup(string(match[1])) == nil {
			t.Errorf("the chart gives --%s, which the program does not know", match[1])
		}
	}
}

// execute runs the subcommand controller against an API server that knows the types and forbids everything.
func execute(t *testing.T, args ...string) error {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if document, ok := discovery[r.URL.Path]; ok {
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
