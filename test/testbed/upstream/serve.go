// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"
)

const (
	// drainTimeout is how long answers may go on after Serve was told to end.
	drainTimeout  = 3 * time.Second
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
)

// Serve answers pulls on data, under certificates of ca, and the admin API on admin, in plain HTTP; admin may be nil.
// When ctx ends it closes both listeners, lets answers go on for 3 s, and returns nil if nothing else went wrong.
func (s *Server) Serve(ctx context.Context, ca *CA, data, admin net.Listener) error {
	return s.serveUntil(ctx, ca, data, admin, drainTimeout)
}

func (s *Server) serveUntil(ctx context.Context, ca *CA, data, admin net.Listener, drain time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type running struct {
		server *http.Server
		serve  func(*http.Server) error
	}
	servers := []running{{newHTTPServer(s.Handler()), func(h *http.Server) error {
		h.TLSConfig = ca.TLSConfig()
		return h.ServeTLS(data, "", "")
	}}}
	if admin != nil {
		servers = append(servers, running{newHTTPServer(s.AdminHandler()), func(h *http.Server) error { return h.Serve(admin) }})
	}
	ended := make(chan error, len(servers))
	for _, r := range servers {
		go func() {
			defer cancel() // the others end with the first
			ended <- r.serve(r.server)
		}()
	}
	<-ctx.Done()

	var errs []error
	deadline, stop := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer stop()
	for _, r := range servers {
		// An error means that answers are left, which is not a failure of Serve.
		if r.server.Shutdown(deadline) != nil {
			errs = append(errs, r.server.Close())
		}
	}
	for range servers {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func newHTTPServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout}
}
