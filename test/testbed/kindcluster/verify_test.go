// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestTargetCheck(t *testing.T) {
	t.Parallel()
	target := target{what: "the pod on w", url: "http://10.244.1.2:8080/name", answers: []string{"w"}}
	if err := target.check("node c", "w", nil); err != nil {
		t.Error(err)
	}
	// A host outside of the cluster that answers is no success.
	if err := target.check("node c", "<html>", nil); err == nil || !strings.Contains(err.Error(), "something else answered") {
		t.Errorf("got %v for a foreign answer", err)
	}
	refused := errors.New("connection refused")
	if err := target.check("node c", "", refused); !errors.Is(err, refused) || !strings.Contains(err.Error(), "node c does not reach the pod on w") {
		t.Errorf("got %v for no answer", err)
	}
}

func TestInParallelJoinsInOrder(t *testing.T) {
	t.Parallel()
	err := inParallel([]int{1, 2, 3}, func(i int) error {
		if i == 2 {
			return nil
		}
		return fmt.Errorf("error %d", i)
	})
	if err == nil || err.Error() != "error 1\nerror 3" {
		t.Errorf("got %v", err)
	}
}

func TestUnownedAddress(t *testing.T) {
	t.Parallel()
	client := fake.NewClientset()
	for _, ip := range []string{"10.96.255.254", "10.96.255.252", "10.96.0.1"} {
		service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "s" + ip}, Spec: corev1.ServiceSpec{ClusterIPs: []string{ip}}}
		if err := client.Tracker().Add(service); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := unownedAddress(t.Context(), client); err != nil || got != "10.96.255.253" {
		t.Errorf("got %q, %v", got, err)
	}
}

// ipv4 is a packet with a header of the given words (of 4 bytes each), see RFC 791.
func ipv4(words int, protocol byte, destination string, port uint16) []byte {
	packet := make([]byte, words*4+8)
	packet[0], packet[9] = 0x40|byte(words), protocol
	copy(packet[16:20], netip.MustParseAddr(destination).AsSlice())
	packet[words*4+2], packet[words*4+3] = byte(port>>8), byte(port)
	return packet
}

func TestDestinationOf(t *testing.T) {
	t.Parallel()
	const tcp, udp = 6, 17
	for name, tc := range map[string]struct {
		packet  []byte
		address string
		port    uint16
	}{
		"UDP":              {ipv4(5, udp, "10.89.0.4", 8472), "10.89.0.4", 8472},
		"UDP with options": {ipv4(7, udp, "10.89.0.4", 8472), "10.89.0.4", 8472},
		"TCP":              {ipv4(5, tcp, "10.96.255.254", 80), "10.96.255.254", 0},
		"UDP, cut":         {ipv4(5, udp, "10.89.0.4", 8472)[:22], "10.89.0.4", 0},
		"header, cut":      {ipv4(5, udp, "10.89.0.4", 8472)[:19], "", 0},
		"IPv6":             {slices.Concat([]byte{0x60}, make([]byte, 59)), "", 0},
	} {
		address, port := destinationOf(tc.packet)
		want := netip.Addr{}
		if tc.address != "" {
			want = netip.MustParseAddr(tc.address)
		}
		if address != want || port != tc.port {
			t.Errorf("%s: %v port %d, want %v port %d", name, address, port, want, tc.port)
		}
	}
}
