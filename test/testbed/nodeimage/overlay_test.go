// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const checkoutDir = "../../../"

func TestShellFiles(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Skip("shellcheck is not installed")
	}
	var scripts []string
	err := filepath.WalkDir(checkoutDir+"hack/kind", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if first, _, _ := bytes.Cut(content, []byte("\n")); bytes.HasPrefix(first, []byte("#!/bin/")) {
			scripts = append(scripts, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(scripts) < 5 {
		t.Errorf("found only the scripts %s", scripts)
	}
	if out, err := exec.CommandContext(t.Context(), "shellcheck", scripts...).CombinedOutput(); err != nil {
		t.Errorf("shellcheck: %v\n%s", err, out)
	}
}

// inNetworkNamespace runs a shell script as root of a network namespace of its own, in which "outside" makes the other
// end of eth0. The folder of the overlay's programs is in PATH.
func inNetworkNamespace(t *testing.T, script string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	for _, program := range []string{"unshare", "nft", "ip", "bridge"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs the program %s", program)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "unshare", "--net", "ip", "link", "add", "v", "type", "veth", "peer", "name", "w").CombinedOutput(); err != nil {
		t.Skipf("this host makes no virtual devices: %s", out)
	}
	overlay, err := filepath.Abs(checkoutDir + overlayDir)
	if err != nil {
		t.Fatal(err)
	}
	const prelude = `set -eu
ip link set lo up
ip link add eth0 type veth peer name outside
ip address add 10.89.0.5/24 dev eth0
ip link set eth0 up
ip link set outside up
ip route add default via 10.89.0.1
`
	cmd := exec.CommandContext(t.Context(), "unshare", "--net", "bash", "-c", prelude+script)
	cmd.Env = append(os.Environ(), "PATH="+overlay+"/usr/local/sbin:"+os.Getenv("PATH"), "RULES="+overlay+"/etc/testbed-guard.nft", "DIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

func TestGuardRulesLoad(t *testing.T) {
	t.Parallel()
	inNetworkNamespace(t, `nft --check --file "$RULES"`)
}

// What leaves is counted by a rule of the other end's device, and what the guard drops by the guard.
func TestGuardKeepsPacketsInside(t *testing.T) {
	t.Parallel()
	out := inNetworkNamespace(t, `
nft add table netdev seen
nft 'add chain netdev seen in { type filter hook ingress device outside priority 0; }'
for daddr in 10.89.0.9 192.0.2.1 10.96.7.7 10.244.3.3; do
	nft add counter netdev seen "c$daddr" || true
	nft "add rule netdev seen in ip daddr $daddr counter"
done
# Without these, a packet would wait for an answer to the question who has the address.
for neighbour in 10.89.0.9 10.89.0.1; do
	ip neighbour replace "$neighbour" lladdr 02:00:00:00:00:01 dev eth0 nud permanent
done
try() { # NAME: sends one packet to each address
	for daddr in 10.89.0.9 192.0.2.1 10.96.7.7 10.244.3.3; do
		(echo x >"/dev/udp/$daddr/9") 2>/dev/null || true
	done
	echo "$1" $(nft list chain netdev seen in | grep -o 'daddr.*packets [0-9]*' | sed 's/daddr \(.*\) counter packets /\1=/')
}
try open
nft --file "$RULES"
try closed
testbed-guard "$RULES"
try guarded
testbed-guard "$RULES"
try again
`)
	for _, want := range []string{
		"open 10.89.0.9=1 192.0.2.1=1 10.96.7.7=1 10.244.3.3=1\n",
		// The rules alone let nothing out, not even into the node network.
		"closed 10.89.0.9=1 192.0.2.1=1 10.96.7.7=1 10.244.3.3=1\n",
		"guarded 10.89.0.9=2 192.0.2.1=1 10.96.7.7=1 10.244.3.3=1\n",
		"again 10.89.0.9=3 192.0.2.1=1 10.96.7.7=1 10.244.3.3=1\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("want %q in:\n%s", want, out)
		}
	}
}

func TestNetFollowsThePeers(t *testing.T) {
	t.Parallel()
	out := inNetworkNamespace(t, `
if ! ip link add probe type vxlan id 7 dstport 4789 dev eth0 2>/dev/null; then echo unsupported; exit 0; fi
ip link delete probe
show() {
	echo "$1" routes: $(ip -4 route show dev testbed | awk '{print $1}' | sort) \
		neighbours: $(ip -4 neighbour show dev testbed nud permanent | awk '{print $1 "/" $3}' | sort) \
		fdb: $(bridge fdb show dev testbed | grep -o '.* dst [0-9.]*' | awk '{print $1 "/" $3}' | sort) \
		own: $(ip -4 -o address show dev testbed | awk '{print $4}')
}
printf '10.89.0.5 10.244.0.0/24\n10.89.0.6 10.244.1.0/24\n10.89.0.7 10.244.2.0/24\n' >"$DIR/peers"
testbed-net "$DIR/peers"
show first
testbed-net "$DIR/peers"
show again
printf '10.89.0.5 10.244.0.0/24\n10.89.0.8 10.244.3.0/24\n10.89.0.7 10.244.2.0/24\n' >"$DIR/peers"
testbed-net "$DIR/peers"
show changed
ip address add 10.89.0.20/24 dev eth0
ip address delete 10.89.0.5/24 dev eth0
ip address replace 10.89.0.20/24 dev eth0
printf '10.89.0.20 10.244.0.0/24\n10.89.0.7 10.244.2.0/24\n' >"$DIR/peers"
testbed-net "$DIR/peers"
show moved
ip -d link show testbed | grep -o 'local [0-9.]*'
printf '10.89.0.7 10.244.2.0/24\n' >"$DIR/peers"
testbed-net "$DIR/peers" 2>&1 || echo "refused"
`)
	if strings.Contains(out, "unsupported") {
		t.Skip("this host has no VXLAN")
	}
	const first = "routes: 10.244.1.0/24 10.244.2.0/24 neighbours: 10.244.1.0/0a:58:0a:59:00:06 10.244.2.0/0a:58:0a:59:00:07" +
		" fdb: 0a:58:0a:59:00:06/10.89.0.6 0a:58:0a:59:00:07/10.89.0.7 own: 10.244.0.0/32\n"
	for _, want := range []string{
		"first " + first,
		"again " + first,
		"changed routes: 10.244.2.0/24 10.244.3.0/24 neighbours: 10.244.2.0/0a:58:0a:59:00:07 10.244.3.0/0a:58:0a:59:00:08" +
			" fdb: 0a:58:0a:59:00:07/10.89.0.7 0a:58:0a:59:00:08/10.89.0.8 own: 10.244.0.0/32\n",
		"moved routes: 10.244.2.0/24 neighbours: 10.244.2.0/0a:58:0a:59:00:07 fdb: 0a:58:0a:59:00:07/10.89.0.7 own: 10.244.0.0/32\n",
		"local 10.89.0.20\n",
		"no line for this node's address 10.89.0.20",
		"refused",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("want %q in:\n%s", want, out)
		}
	}
}
