// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// inspected is what the engines print, reduced to some of the fields: docker's names have a slash.
const inspected = `[
 {"Name": "/c-worker10", "State": {"Running": true, "StartedAt": "2026-01-02T03:04:05.678Z"},
  "Config": {"Labels": {"io.x-k8s.kind.role": "worker"}}, "NetworkSettings": {"Networks": {"kind": {"IPAddress": "10.89.0.4"}}}},
 {"Name": "c-worker2", "State": {"Running": false}, "Config": {"Labels": {"io.x-k8s.kind.role": "worker"}},
  "NetworkSettings": {"Networks": {"kind": {"IPAddress": ""}}}},
 {"Name": "c-worker", "Config": {"Labels": {"io.x-k8s.kind.role": "worker"}}},
 {"Name": "c-control-plane", "Config": {"Labels": {"io.x-k8s.kind.role": "control-plane"}},
  "Mounts": [{"Type": "volume", "Name": "v1", "Destination": "/var"}]}
]`

func TestParseContainers(t *testing.T) {
	t.Parallel()
	containers, err := parseContainers([]byte(inspected))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range containers {
		names = append(names, c.Name)
	}
	if want := []string{"c-control-plane", "c-worker", "c-worker2", "c-worker10"}; !slices.Equal(names, want) {
		t.Errorf("order %v, want %v", names, want)
	}
	if node := containers[3].node(nil); node.IP != "10.89.0.4" || node.Role != Worker {
		t.Errorf("node %+v", node)
	}
	if !containers[3].State.Running || containers[3].State.StartedAt.IsZero() || containers[2].State.Running {
		t.Errorf("states %+v, %+v", containers[3].State, containers[2].State)
	}
	if _, err := parseContainers([]byte("no JSON")); err == nil {
		t.Error("no error for what is not JSON")
	}
}

func TestLabelledVolumes(t *testing.T) {
	t.Parallel()
	lines := "podman1\tmap[c-worker2:true]\n" +
		"docker1\tc-control-plane=true,other=1\n" +
		"docker2\tother=1,c-worker=true\n" +
		"none\tmap[]\n" +
		"of-another-cluster\tmap[not-c-worker:true]\n" +
		"of-a-third\tmap[c-worker-of-mine:true]\n" +
		"no-labels\n"
	if got, want := labelledVolumes(lines, "c"), []string{"podman1", "docker1", "docker2"}; !slices.Equal(got, want) {
		t.Errorf("volumes %v, want %v", got, want)
	}
}

func readyNode(name, ip, podCIDR string, heartbeat time.Time) corev1.Node {
	return corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.NodeSpec{PodCIDR: podCIDR},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: ip}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(heartbeat)}},
		},
	}
}

func TestCheckNode(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
	c := container{Name: "w"}
	c.State.StartedAt = start
	c.NetworkSettings.Networks = map[string]struct{ IPAddress string }{network: {"10.89.0.3"}}

	for name, tc := range map[string]struct {
		change func(*corev1.Node)
		ok     bool
	}{
		"ready":                      {change: func(*corev1.Node) {}, ok: true},
		"another node":               {change: func(n *corev1.Node) { n.Name = "w2" }},
		"address before the restart": {change: func(n *corev1.Node) { n.Status.Addresses[1].Address = "10.89.0.9" }},
		"no pod network":             {change: func(n *corev1.Node) { n.Spec.PodCIDR = "" }},
		"not ready":                  {change: func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }},
		"ready before the restart": {change: func(n *corev1.Node) {
			n.Status.Conditions[0].LastHeartbeatTime = metav1.NewTime(start.Add(-time.Second))
		}},
		"no condition": {change: func(n *corev1.Node) { n.Status.Conditions = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node := readyNode("w", "10.89.0.3", "10.244.1.0/24", start.Truncate(time.Second))
			tc.change(&node)
			if err := checkNode([]corev1.Node{node}, c); (err == nil) != tc.ok {
				t.Errorf("got %v, want ok %t", err, tc.ok)
			}
		})
	}
}

func TestPeers(t *testing.T) {
	t.Parallel()
	now := time.Now()
	got, err := peers([]corev1.Node{
		readyNode("c", "10.89.0.5", "10.244.0.0/24", now),
		readyNode("w", "10.89.0.3", "10.244.3.0/24", now),
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := "10.89.0.3 10.244.3.0/24\n10.89.0.5 10.244.0.0/24\n"; got != want {
		t.Errorf("peers %q, want %q", got, want)
	}
	for _, node := range []corev1.Node{readyNode("w", "", "10.244.3.0/24", now), readyNode("w", "10.89.0.3", "fd00::/64", now)} {
		if content, err := peers([]corev1.Node{node}); err == nil {
			t.Errorf("peers %q from node %+v, want an error", content, node)
		}
	}
}
