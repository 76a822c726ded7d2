// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	made := &record{Workers: 2, NodeImage: "node:a", KubeProxyMode: "iptables"}
	for name, tc := range map[string]struct {
		nodes     int
		made      *record
		options   Options
		want      action
		reason    string
		wantError string
	}{
		"nothing there":               {nodes: 0, options: Options{NodeImage: "node:a"}, want: create},
		"as wanted":                   {nodes: 3, made: made, options: Options{Workers: 2, NodeImage: "node:a", KubeProxyMode: "iptables"}, want: keep},
		"nothing in particular given": {nodes: 3, made: made, want: keep},
		"interrupted":                 {nodes: 2, options: Options{NodeImage: "node:a"}, want: recreate, reason: "interrupted"},
		"a node was lost":             {nodes: 2, made: made, want: recreate, reason: "made with 3 nodes, and 2 are there"},
		"other number of workers":     {nodes: 3, made: made, options: Options{Workers: 5}, want: keep, wantError: "workers 2, and 5 is wanted"},
		"other node image":            {nodes: 3, made: made, options: Options{NodeImage: "node:b"}, want: keep, wantError: "node image node:a, and node:b is wanted"},
		"other mode":                  {nodes: 3, made: made, options: Options{KubeProxyMode: "nftables"}, want: keep, wantError: "kube-proxy mode iptables"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, reason, err := decide(tc.nodes, tc.made, tc.options)
			if got != tc.want || !strings.Contains(reason, tc.reason) || (tc.reason == "") != (reason == "") {
				t.Errorf("decided %d for %q, want %d for %q", got, reason, tc.want, tc.reason)
			}
			switch {
			case tc.wantError == "" && err != nil:
				t.Error(err)
			case tc.wantError != "" && (err == nil || !strings.Contains(err.Error(), tc.wantError) || !strings.Contains(err.Error(), "make kind-down")):
				t.Errorf("error %v, want %q and the way out", err, tc.wantError)
			}
		})
	}
}

func TestClusterIsMadeAnewAsItWas(t *testing.T) {
	t.Parallel()
	made := &record{Workers: 3, NodeImage: "node:a", KubeProxyMode: "nftables"}
	want := Options{Name: "c", Workers: 3, NodeImage: "node:b", KubeProxyMode: "nftables"}
	if got := (Options{Name: "c", NodeImage: "node:b"}).like(made); got != want {
		t.Errorf("options %+v, want %+v", got, want)
	}
	if got := want.like(nil); got != want {
		t.Errorf("options %+v without a record, want %+v", got, want)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{{Workers: -1}, {KubeProxyMode: "ipvs"}} {
		if _, err := o.complete(); err == nil {
			t.Errorf("options %+v were accepted", o)
		}
	}
	o, err := Options{Kubeconfig: "/there/kubeconfig"}.complete()
	if err != nil || o.Name != "registry-cache" || o.Kubeconfig != "/there/kubeconfig" || o.Workers != 0 {
		t.Errorf("completed to %+v, %v", o, err)
	}
}

func TestKindConfig(t *testing.T) {
	t.Parallel()
	config := kindConfig(Options{Name: "c", Workers: 2, KubeProxyMode: "nftables"})
	var roles []v1alpha4.NodeRole
	for _, node := range config.Nodes {
		roles = append(roles, node.Role)
	}
	if want := []v1alpha4.NodeRole{"control-plane", "worker", "worker"}; !slices.Equal(roles, want) {
		t.Errorf("roles %v, want %v", roles, want)
	}
	if want := (v1alpha4.Networking{DisableDefaultCNI: true, KubeProxyMode: "nftables"}); config.Networking != want {
		t.Errorf("networking %+v, want %+v", config.Networking, want)
	}
}

func TestKindStep(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]string{
		" • Preparing nodes 📦 📦 📦   ...\n":            "Preparing nodes",
		" • Waiting ≤ 2m0s for control-plane = Ready": "Waiting 2m0s for control-plane = Ready",
		" ✓ Preparing nodes 📦\n":                      "",
		"Creating cluster \"c\" ...\n":                "",
	} {
		if got, begins := kindStep(message); got != want || begins != (want != "") {
			t.Errorf("%q: step %q (%t), want %q", message, got, begins, want)
		}
	}
}

func TestSetEnvironment(t *testing.T) {
	t.Setenv("TESTBED_STAYS", "1")
	t.Setenv("TESTBED_CHANGES", "before")
	t.Setenv("TESTBED_GOES", "1")
	before := slices.Sorted(slices.Values(os.Environ()))

	restore, err := setEnvironment([]string{"TESTBED_STAYS=1", "TESTBED_CHANGES=user", "TESTBED_COMES=a=b", "TESTBED_CHANGES=ours"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"TESTBED_CHANGES=ours", "TESTBED_COMES=a=b", "TESTBED_STAYS=1"}
	during := slices.Sorted(slices.Values(os.Environ()))
	restore()
	if diff := cmp.Diff(want, during); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, slices.Sorted(slices.Values(os.Environ()))); diff != "" {
		t.Errorf("restored environment (-want +got):\n%s", diff)
	}
}
