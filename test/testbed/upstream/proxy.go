// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
)

// ServeProxy answers on listener as the forward proxy of a company whose only way out leads to the registry at target
// ("host:port"): CONNECT reaches it, whatever host is asked for, and nothing else is answered. What comes through the
// proxy has an address of the proxy's machine as RemoteAddr in the request log. When ctx ends it closes the listener and
// all tunnels, and returns nil if nothing else went wrong.
func ServeProxy(ctx context.Context, listener net.Listener, target string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tunnels sync.WaitGroup
	defer tunnels.Wait()
	defer cancel()
	server := newHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "this proxy is for https only", http.StatusMethodNotAllowed)
			return
		}
		out, err := new(net.Dialer).DialContext(ctx, "tcp", target)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		in, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			out.Close()
			return
		}
		// The server does not know hijacked connections any more.
		tunnels.Go(func() {
			stop := context.AfterFunc(ctx, func() {
				in.Close()
				out.Close()
			})
			defer stop()
			if _, err := io.WriteString(in, "HTTP/1.1 200 Connection established\r\n\r\n"); err == nil {
				tunnel(in, buffered, out)
			}
			in.Close()
			out.Close()
		})
	}))
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// tunnel copies both ways until either side has nothing more to say. Errors are those of clients that leave.
func tunnel(in net.Conn, fromClient io.Reader, out net.Conn) {
	done := make(chan struct{}, 2)
	forward := func(to io.Writer, from io.Reader) {
		_, _ = io.Copy(to, from)
		done <- struct{}{}
	}
	go forward(out, fromClient)
	go forward(in, out)
	<-done
	in.Close()
	out.Close()
	<-done
}
