// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"context"
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// errStalledVolume is logged for a response that the server has cut, because the volume did not deliver its content.
var errStalledVolume = errors.New("the volume did not deliver the content in time")

// guarded is content that the kernel sends from a volume without a deadline. See volume.File.Guard for the contract.
type guarded interface {
	Guard(check func(hung bool)) (end func())
}

type connectionKey struct{}

// ConnContext is the ConnContext of the http.Server that serves a Handler. Without it, a response that is blocked by the
// volume is not cut.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	// A TLS connection reads files in this process, with a deadline.
	if tcp, ok := conn.(*net.TCPConn); ok {
		return context.WithValue(ctx, connectionKey{}, tcp)
	}
	return ctx
}

// guard shuts the connection of the request down if content is guarded and the volume does not deliver it. The client then
// resumes with a Range request. end returns errStalledVolume if the connection was shut down.
func guard(ctx context.Context, content any) (end func() error) {
	file, ok := content.(guarded)
	conn, hasConn := ctx.Value(connectionKey{}).(*net.TCPConn)
	if !ok || !hasConn {
		return func() error { return nil }
	}
	var err error // set by the check, which does not run any more after end
	idle := false
	endGuard := file.Guard(func(hung bool) {
		if err != nil {
			return
		}
		// The kernel has sent everything that it has got, in two checks in succession.
		wasIdle := idle
		idle = isIdle(conn)
		if hung || idle && wasIdle {
			// Close would wait for the call that is blocked.
			err = errors.Join(errStalledVolume, conn.CloseWrite())
		}
	})
	return func() error {
		endGuard()
		return err
	}
}

// isIdle reports whether the client has acknowledged all bytes of the connection.
func isIdle(conn *net.TCPConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	pending, queueErr := -1, error(nil)
	err = raw.Control(func(fd uintptr) { pending, queueErr = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return err == nil && queueErr == nil && pending == 0
}
