// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// vxlanPort is the UDP port of the pod network between nodes; it is testbed-net's.
const vxlanPort = 8472

// capture counts what passes a node's network interface, at the host's end of it: no rule in the node can hide a packet
// that has left it.
type capture struct {
	socket *os.File
	done   sync.WaitGroup

	services netip.Prefix
	// The counts are valid after stop.
	toServices, betweenPods int
	err                     error
}

// startCapture begins to count the packets to addresses in services, and the packets between pods on different nodes as
// a sign that it counts at all.
func startCapture(ctx context.Context, node Node, services netip.Prefix) (*capture, error) {
	out, err := node.Run(ctx, nil, "cat", "/sys/class/net/eth0/iflink")
	if err != nil {
		return nil, err
	}
	index, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		return nil, fmt.Errorf("reading the index of eth0's peer: %w", err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	c := &capture{socket: os.NewFile(uintptr(fd), "packet socket"), services: services}
	// All protocols, because what is received for one of them is given out after the bridge has taken the packet. The
	// number is in network byte order, see packet(7).
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		return nil, errors.Join(fmt.Errorf("binding a packet socket to interface %d: %w", index, err), c.socket.Close())
	}
	c.done.Go(c.count)
	return c, nil
}

func (c *capture) count() {
	packet := make([]byte, 64<<10)
	for {
		n, err := c.socket.Read(packet)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			c.err = err
			return
		}
		switch destination, port := destinationOf(packet[:n]); {
		case c.services.Contains(destination):
			c.toServices++
		case port == vxlanPort:
			c.betweenPods++
		}
	}
}

// stop ends the capture; the counts may be read after it.
func (c *capture) stop() error {
	err := c.socket.Close()
	c.done.Wait()
	return errors.Join(err, c.err)
}

// destinationOf returns the address and, for UDP, the port that an IPv4 packet goes to, see RFC 791 section 3.1 and
// RFC 768.
func destinationOf(packet []byte) (netip.Addr, uint16) {
	if len(packet) < 20 || packet[0]>>4 != 4 {
		return netip.Addr{}, 0
	}
	destination := netip.AddrFrom4([4]byte(packet[16:20]))
	header := int(packet[0]&0x0f) * 4
	if packet[9] != unix.IPPROTO_UDP || len(packet) < header+4 {
		return destination, 0
	}
	return destination, binary.BigEndian.Uint16(packet[header+2 : header+4])
}
