// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/shoot"
)

// caBundle returns the CAs that the status of the Shoot names, in PEM, "" if it names none.
func caBundle(ctx context.Context, result *shoot.Result) string {
	GinkgoHelper()
	if result.Status.CASecretName == nil {
		return ""
	}
	secret := &corev1.Secret{}
	Expect(kube.Get(ctx, types.NamespacedName{Namespace: result.Namespace, Name: *result.Status.CASecretName}, secret)).To(Succeed())
	Expect(secret.Data).To(HaveKey("bundle.crt"))
	return string(secret.Data["bundle.crt"])
}

// onlyScheme refuses what a client tries by another scheme than the one that is to be proven.
type onlyScheme struct {
	scheme    string
	transport http.RoundTripper
}

func (o onlyScheme) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.URL.Scheme != o.scheme {
		return nil, fmt.Errorf("%s %s: only %s is allowed here", request.Method, request.URL, o.scheme)
	}
	return o.transport.RoundTrip(request)
}

// cacheTransport speaks to the caches of the Shoot from the node, by scheme alone. With https it trusts the CA of the Shoot
// and nothing else. done closes its connections.
func cacheTransport(ctx context.Context, node kindcluster.Node, result *shoot.Result, scheme string) (transport http.RoundTripper, done func()) {
	GinkgoHelper()
	roots := x509.NewCertPool()
	if bundle := caBundle(ctx, result); bundle != "" {
		Expect(roots.AppendCertsFromPEM([]byte(bundle))).To(BeTrue())
	}
	t := &http.Transport{
		DialContext:     nodeDialer{tb.Cluster.Engine(), node}.DialContext,
		TLSClientConfig: &tls.Config{RootCAs: roots},
	}
	return onlyScheme{scheme, t}, t.CloseIdleConnections
}

// probe asks the cache of an upstream at a URL, from the node, whether it is one.
func probe(ctx context.Context, node kindcluster.Node, result *shoot.Result, scheme, upstreamHost string) error {
	GinkgoHelper()
	transport, done := cacheTransport(ctx, node, result, scheme)
	defer done()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint(result, upstreamHost)+"/v2/", nil)
	if err != nil {
		return err
	}
	request.URL.Scheme = scheme
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	if err := response.Body.Close(); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s answered %s", request.URL, response.Status)
	}
	return nil
}
