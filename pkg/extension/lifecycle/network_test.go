// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/registry-cache/extension/test/testbed/controlplane"
)

// Pods have made-up addresses: a request to one must not leave the machine. This one is the machine's own, so that it does
// not even where the test fails.
func TestPodsAreNotOnTheNetwork(t *testing.T) {
	t.Parallel()
	address := ownAddress(t)
	cluster, err := controlplane.Start(t.Context(), findPrograms(t), t.TempDir(), controlplane.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "nowhere"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example.com/c"}}},
	}
	if err := cluster.Client().Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if err := cluster.MarkReady(t.Context(), pod, address); err != nil {
		t.Fatal(err)
	}
	kube, err := kubernetes.NewForConfig(cluster.Config())
	if err != nil {
		t.Fatal(err)
	}
	answer, err := kube.CoreV1().RESTClient().Get().Namespace(pod.Namespace).Resource("pods").Name(pod.Name + ":1").SubResource("proxy").
		Timeout(10 * time.Second).DoRaw(t.Context())
	if err == nil || !strings.Contains(string(answer), "dial unix") {
		t.Errorf("asking the pod at %s: %q, %v, want that the socket is missing which leads to pods", address, answer, err)
	}
}

// ownAddress is an address of this machine that others may know. The API server refuses to proxy to loopback addresses.
func ownAddress(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range addresses {
		if network, ok := address.(*net.IPNet); ok && network.IP.IsGlobalUnicast() && network.IP.To4() != nil {
			return network.IP.String()
		}
	}
	t.Skip("the machine has no address but loopback ones")
	return ""
}
