// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"slices"
	"strings"
	"testing"

	"github.com/registry-cache/extension/test/testbed/host"
)

func TestNextWorker(t *testing.T) {
	t.Parallel()
	for want, names := range map[string][]string{
		"c-worker2":  {"c-control-plane", "c-worker"},
		"c-worker3":  {"c-control-plane", "c-worker", "c-worker2"},
		"c-worker11": {"c-control-plane", "c-worker", "c-worker10"},
	} {
		var containers []container
		for _, name := range names {
			containers = append(containers, container{Name: name})
		}
		if got := nextWorker("c", containers); got != want {
			t.Errorf("after %v comes %s, want %s", names, got, want)
		}
	}
}

func TestJoinConfig(t *testing.T) {
	t.Parallel()
	const of = `apiServerEndpoint: c-control-plane:6443
bootstrapTokens:
- token: abcdef.0123456789abcdef
discovery:
  bootstrapToken:
    token: abcdef.0123456789abcdef
nodeRegistration:
  kubeletExtraArgs:
    node-ip: 10.89.0.3
    peer: 10.89.0.32
    provider-id: kind://podman/c/c-worker
`
	from, to := Node{Name: "c-worker", IP: "10.89.0.3"}, Node{Name: "c-worker3", IP: "10.89.0.9"}
	got, err := joinConfig(of, from, to, "new.token")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer("abcdef.0123456789abcdef", "new.token", "node-ip: 10.89.0.3\n", "node-ip: 10.89.0.9\n",
		"kind://podman/c/c-worker\n", "kind://podman/c/c-worker3\n").Replace(of)
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for name, bad := range map[string]string{"no token": "node-ip: 10.89.0.3", "no address": "token: abcdef.0123456789abcdef"} {
		if got, err := joinConfig(bad, from, to, "new.token"); err == nil {
			t.Errorf("%s: got %s", name, got)
		}
	}
}

func TestWorkerArgs(t *testing.T) {
	t.Parallel()
	for engine, volume := range map[string]string{host.Podman: "v:/var/:suid,exec,dev", host.Docker: "v:/var/"} {
		args := workerArgs(engine, "c", "c-worker3", "image", "v")
		if args[0] != "run" || args[len(args)-1] != "image" {
			t.Errorf("%s: %v", engine, args)
		}
		for _, want := range []string{volume, "io.x-k8s.kind.cluster=c", "io.x-k8s.kind.role=worker", addedLabel + "=true"} {
			if !slices.Contains(args, want) {
				t.Errorf("%s: %v do not have %q", engine, args, want)
			}
		}
	}
}
