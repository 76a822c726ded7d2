// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// kubeadmCorefile is what kubeadm v1.34 writes.
const kubeadmCorefile = `.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
`

const closedCorefile = `.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    reload
    loadbalance
}
`

func TestCloseCorefile(t *testing.T) {
	t.Parallel()
	if diff := cmp.Diff(closedCorefile, closeCorefile(kubeadmCorefile)); diff != "" {
		t.Errorf("closed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(closedCorefile, closeCorefile(closedCorefile)); diff != "" {
		t.Errorf("closed again (-want +got):\n%s", diff)
	}
	// A plugin's own settings may have the name of a plugin; a forward without a block is one line.
	odd := ".:53 {\n    # forward {\n    cache {\n        loop\n    }\n    forward . 192.0.2.1\n}\n"
	if got, want := closeCorefile(odd), strings.Replace(odd, "    forward . 192.0.2.1\n", "", 1); got != want {
		t.Errorf("closed %q, want %q", got, want)
	}
}

func TestSetHostsInCorefile(t *testing.T) {
	t.Parallel()
	entries := map[string][]string{"10.89.0.7": {"quay.io", "docker.io"}, "10.89.0.10": {"registry.example.com"}}
	with := setHosts(closedCorefile, entries)
	want := strings.Replace(closedCorefile, ".:53 {\n", `.:53 {
    hosts {
        10.89.0.10 registry.example.com
        10.89.0.7 docker.io quay.io
        ttl 5
        fallthrough
    }
`, 1)
	if diff := cmp.Diff(want, with); diff != "" {
		t.Errorf("with entries (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, setHosts(with, entries)); diff != "" {
		t.Errorf("with the entries again (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string][]string{"10.89.0.7": {"docker.io", "quay.io"}, "10.89.0.10": {"registry.example.com"}}, hostsOf(with)); diff != "" {
		t.Errorf("entries read back (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(closedCorefile, setHosts(with, nil)); diff != "" {
		t.Errorf("without entries (-want +got):\n%s", diff)
	}
	if got := hostsOf(closedCorefile); len(got) > 0 {
		t.Errorf("entries %v where there are none", got)
	}
}

func TestSetHostsRefusesWhatIsNoEntry(t *testing.T) {
	t.Parallel()
	for _, entries := range []map[string][]string{
		{"docker.io": {"10.89.0.7"}},
		{"10.89.0.7": {"docker.io {"}},
		{"10.89.0.7": {""}},
	} {
		// The entries are checked before the engine is asked, so there need not be one.
		if err := new(Cluster).SetHosts(t.Context(), entries); err == nil {
			t.Errorf("entries %v were accepted", entries)
		}
	}
}

func coreDNS() (*corev1.ConfigMap, *appsv1.Deployment) {
	meta := metav1.ObjectMeta{Namespace: dnsNamespace, Name: dnsName}
	return &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"Corefile": kubeadmCorefile}},
		&appsv1.Deployment{
			ObjectMeta: meta,
			Spec: appsv1.DeploymentSpec{
				Replicas: new(int32(2)),
				Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{ReadinessProbe: &corev1.Probe{}}}}},
			},
			Status: appsv1.DeploymentStatus{Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2},
		}
}

func TestEnsureDNSRestartsOnlyForAChange(t *testing.T) {
	t.Parallel()
	cm, deployment := coreDNS()
	client := fake.NewClientset(cm, deployment)
	updates := func() (n int) {
		for _, action := range client.Actions() {
			if action.GetVerb() == "update" {
				n++
			}
		}
		return n
	}
	entries := map[string][]string{"10.89.0.7": {"docker.io"}}
	edit := func(corefile string) string { return setHosts(closeCorefile(corefile), entries) }
	for range 2 {
		got, err := ensureDNS(t.Context(), client, edit)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(entries, got); diff != "" {
			t.Errorf("entries (-want +got):\n%s", diff)
		}
		if n := updates(); n != 2 {
			t.Errorf("%d updates, want one of the ConfigMap and one of the Deployment", n)
		}
	}
	cm, err := client.CoreV1().ConfigMaps(dnsNamespace).Get(t.Context(), dnsName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(cm.Data["Corefile"], "forward") {
		t.Errorf("CoreDNS still forwards:\n%s", cm.Data["Corefile"])
	}
}

func TestEnsureDNSFinishesAnInterruptedChange(t *testing.T) {
	t.Parallel()
	cm, deployment := coreDNS()
	cm.Data["Corefile"] = closedCorefile // the ConfigMap was updated, and CoreDNS not restarted
	client := fake.NewClientset(cm, deployment)
	if _, err := ensureDNS(t.Context(), client, closeCorefile); err != nil {
		t.Fatal(err)
	}
	d, err := client.AppsV1().Deployments(dnsNamespace).Get(t.Context(), dnsName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d.Spec.Template.Annotations[corefileAnnotation] == "" {
		t.Error("CoreDNS was not restarted")
	}
}

func TestRolledOut(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		status appsv1.DeploymentStatus
		ok     bool
	}{
		"done":                 {appsv1.DeploymentStatus{ObservedGeneration: 3, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}, true},
		"not seen":             {appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}, false},
		"new pods missing":     {appsv1.DeploymentStatus{ObservedGeneration: 3, Replicas: 2, UpdatedReplicas: 1, AvailableReplicas: 2}, false},
		"old pods still there": {appsv1.DeploymentStatus{ObservedGeneration: 3, Replicas: 3, UpdatedReplicas: 2, AvailableReplicas: 3}, false},
		"not available":        {appsv1.DeploymentStatus{ObservedGeneration: 3, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 1}, false},
	} {
		_, d := coreDNS()
		d.Generation, d.Status = 3, tc.status
		if err := rolledOut(d); (err == nil) != tc.ok {
			t.Errorf("%s: got %v, want ok %t", name, err, tc.ok)
		}
	}
}
