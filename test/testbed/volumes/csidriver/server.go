// SPDX-License-Identifier: Apache-2.0

package csidriver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
)

// stopTimeout is how long calls may take to finish when the server stops. The kubelet repeats what was cut off.
const stopTimeout = 10 * time.Second

// Listen listens on a Unix socket, "unix:///path" or an absolute path, and makes its folder. The socket that an
// earlier process left is replaced. Closing the listener removes the socket.
func Listen(endpoint string) (net.Listener, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("endpoint %q is not a Unix socket: use unix:///path", endpoint)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", path)
}

// Serve serves gRPC on the listener until ctx is done, and then closes it. register adds the services. Calls that
// change something are logged at info level when they end, others at debug level, failed ones as errors.
func Serve(ctx context.Context, log *slog.Logger, listener net.Listener, register func(grpc.ServiceRegistrar)) error {
	server := grpc.NewServer(grpc.UnaryInterceptor(logCalls(log)))
	register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	force := time.AfterFunc(stopTimeout, server.Stop)
	defer force.Stop()
	server.GracefulStop()
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serving on %s: %w", listener.Addr(), err)
	}
	return nil
}

func logCalls(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		start := time.Now()
		response, err := handler(ctx, req)
		attributes := []any{"method", info.FullMethod, "duration", time.Since(start)}
		changes := false
		if volume, ok := req.(interface{ GetVolumeId() string }); ok {
			attributes = append(attributes, "volume", volume.GetVolumeId())
			changes = !strings.HasSuffix(info.FullMethod, "/NodeGetVolumeStats")
		}
		switch {
		case err != nil:
			log.ErrorContext(ctx, "Call failed", append(attributes, "error", err)...)
		case changes:
			log.InfoContext(ctx, "Call succeeded", attributes...)
		default:
			log.DebugContext(ctx, "Call succeeded", attributes...)
		}
		return response, err
	}
}
