// SPDX-License-Identifier: Apache-2.0

package cacheserver

import (
	"net"
	"runtime"
)

// turnBytes is how much a connection sends before it lets others run: less than 1 ms of the processor. After each TLS record
// of 16 KiB, the processor caches would often have the data of another connection, and sending would need twice the time.
const turnBytes = 256 << 10

// turns is a listener for TLS. Each of its connections lets other goroutines run after turnBytes. A response from the page
// cache never blocks, so that its goroutine would run until the scheduler preempts it after 10 ms. With many responses and
// few processors, a new connection would wait for 10 ms of each of them, several times until the end of its handshake, and
// the nodes would regard the cache as unavailable.
//
// Connections without TLS do not need it: the kernel sends their files, at most 1 MiB with one call.
type turns struct{ net.Listener }

// Accept implements net.Listener.
func (l turns) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &turnConn{Conn: conn}, nil
}

// turnConn counts the bytes of a turn. Package tls serializes the calls of Write.
type turnConn struct {
	net.Conn
	sent int
}

// Write implements net.Conn.
func (c *turnConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if c.sent += n; c.sent >= turnBytes {
		c.sent = 0
		runtime.Gosched()
	}
	return n, err
}
