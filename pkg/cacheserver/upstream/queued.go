// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"net"
	"net/http/httptrace"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// receiving is the connection on which the latest response of a request, after all redirects, arrives.
type receiving struct {
	conn atomic.Pointer[syscall.RawConn] // nil until there is a connection, and if it is not a socket
}

// trace returns a context whose requests set the connection.
func (r *receiving) trace(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		r.conn.Store(rawConn(info.Conn))
	}})
}

// rawConn returns the socket of a connection, nil if it has none.
func rawConn(conn net.Conn) *syscall.RawConn {
	// A TLS connection, possibly in a TLS connection to a proxy.
	for {
		outer, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = outer.NetConn()
	}
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil
	}
	return &raw
}

// queued returns the number of bytes that the kernel has received and that were not read yet, 0 if it is unknown. r may
// be nil.
func (r *receiving) queued() int {
	if r == nil {
		return 0
	}
	raw := r.conn.Load()
	if raw == nil {
		return 0
	}
	n := 0
	var queueErr error
	err := (*raw).Control(func(fd uintptr) { n, queueErr = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	if err != nil || queueErr != nil {
		return 0
	}
	return n
}
