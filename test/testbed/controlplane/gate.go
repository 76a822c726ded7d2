// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// gate passes connections on to an address, and can be shut: connections are cut then, and new ones refused, as where a
// kube-apiserver has no pods.
type gate struct {
	address, backend string

	mu       sync.Mutex // guards what follows
	listener net.Listener
	open     map[net.Conn]bool

	running sync.WaitGroup
}

// newGate returns an open gate with an address of its own.
func newGate(ctx context.Context, backend string) (*gate, error) {
	ports, err := FreePorts(ctx, 1)
	if err != nil {
		return nil, err
	}
	g := &gate{address: fmt.Sprintf("127.0.0.1:%d", ports[0]), backend: backend, open: map[net.Conn]bool{}}
	return g, g.Open(ctx)
}

// Open lets connections through again. Nothing happens if the gate is open.
func (g *gate) Open(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener != nil {
		return nil
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", g.address)
	if err != nil {
		return err
	}
	g.listener = listener
	g.running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // shut
			}
			g.running.Go(func() { g.pass(context.WithoutCancel(ctx), client) })
		}
	})
	return nil
}

// Shut cuts all connections and refuses new ones until Open. It returns when nothing is passed on any more.
func (g *gate) Shut() error {
	g.mu.Lock()
	var errs []error
	if g.listener != nil {
		errs = append(errs, g.listener.Close())
		g.listener = nil
	}
	for conn := range g.open {
		errs = append(errs, conn.Close())
	}
	g.mu.Unlock()
	g.running.Wait()
	return errors.Join(errs...)
}

func (g *gate) pass(ctx context.Context, client net.Conn) {
	if !g.track(client) {
		client.Close()
		return
	}
	defer g.untrack(client)
	var dialer net.Dialer
	server, err := dialer.DialContext(ctx, "tcp", g.backend)
	if err != nil {
		return // the client sees a cut connection
	}
	if !g.track(server) {
		server.Close()
		return
	}
	defer g.untrack(server)
	// Either side may end it; then the other copy ends, too. Errors mean that a side has cut the connection.
	var copies sync.WaitGroup
	copies.Go(func() {
		_, _ = io.Copy(server, client)
		_ = server.(*net.TCPConn).CloseWrite()
	})
	copies.Go(func() {
		_, _ = io.Copy(client, server)
		_ = client.(*net.TCPConn).CloseWrite()
	})
	copies.Wait()
}

func (g *gate) track(conn net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener == nil {
		return false
	}
	g.open[conn] = true
	return true
}

func (g *gate) untrack(conn net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open[conn] {
		delete(g.open, conn)
		conn.Close()
	}
}
