// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bufio"
	"io"
	"net"
	"testing"
)

func TestGate(t *testing.T) {
	t.Parallel()
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	go func() {
		for {
			conn, err := backend.Accept()
			if err != nil {
				return
			}
			go io.Copy(conn, conn)
		}
	}()
	g, err := newGate(t.Context(), backend.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer g.Shut()

	conn := echo(t, g.address)
	if err := g.Shut(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(conn).ReadByte(); err == nil {
		t.Error("a connection outlives the gate")
	}
	if conn, err := net.Dial("tcp", g.address); err == nil {
		conn.Close()
		t.Error("a shut gate accepts a connection")
	}
	if err := g.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	echo(t, g.address)
}

// echo opens a connection and sends a line to and fro.
func echo(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "hello\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	return conn
}
