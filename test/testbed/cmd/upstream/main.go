// SPDX-License-Identifier: Apache-2.0

// Command upstream runs the testbed's upstream registry with the images of the catalogue in it. All it prints, its last
// error too, is on standard output, which is what a container engine hands to whoever asks for a container's log.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, images.Catalogue); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Println("upstream:", err)
		os.Exit(1)
	}
}

// run serves what catalogue returns for the sample program, until ctx ends. Its log goes to out, one JSON object a line.
func run(ctx context.Context, args []string, out io.Writer, catalogue func(program string) []images.Entry) error {
	flags := flag.NewFlagSet("upstream", flag.ContinueOnError)
	flags.SetOutput(out)
	dataDir := flags.String("data-dir", "/data", "`folder` of the blobs, made if missing")
	caDir := flags.String("ca-dir", "/ca", "`folder` with ca.crt and ca.key, made if missing")
	listen := flags.String("listen", ":443", "`address` of the registry, https")
	admin := flags.String("admin", ":8080", "`address` of the admin API, http")
	proxy := flags.String("proxy", "", "`address` of a forward proxy that leads to the registry, http; without it there is none")
	sample := flags.String("sample", "", "static `program` for the sample images; without it there are none")
	tokenHosts := flags.String("token-hosts", "", "comma-separated registry `hosts` that demand a bearer token")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	logger := slog.New(slog.NewJSONHandler(out, nil))

	ca, err := upstream.LoadOrCreate(*caDir)
	if err != nil {
		return err
	}
	server, err := upstream.New(upstream.Options{Dir: *dataDir, TokenHosts: split(*tokenHosts)})
	if err != nil {
		return err
	}
	// Listening first makes early clients wait, where they would be refused or be told that an image is unknown.
	dataListener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	defer dataListener.Close()
	adminListener, err := net.Listen("tcp", *admin)
	if err != nil {
		return err
	}
	defer adminListener.Close()
	var proxyListener net.Listener
	if *proxy != "" {
		if proxyListener, err = net.Listen("tcp", *proxy); err != nil {
			return err
		}
		defer proxyListener.Close()
	}
	if err := load(ctx, server, catalogue(*sample), logger); err != nil {
		return err
	}
	logger.Info("Serving", "registry", dataListener.Addr().String(), "admin", adminListener.Addr().String())
	defer logger.Info("Stopped")
	group, ctx := errgroup.WithContext(ctx)
	if proxyListener != nil {
		_, port, err := net.SplitHostPort(dataListener.Addr().String())
		if err != nil {
			return err
		}
		group.Go(func() error { return upstream.ServeProxy(ctx, proxyListener, net.JoinHostPort("localhost", port)) })
	}
	group.Go(func() error { return server.Serve(ctx, ca, dataListener, adminListener) })
	return group.Wait()
}

func load(ctx context.Context, server *upstream.Server, catalogue []images.Entry, logger *slog.Logger) error {
	for _, entry := range catalogue {
		artifact, err := entry.Build()
		if err != nil {
			return fmt.Errorf("building image %s: %w", entry.Reference, err)
		}
		if err := server.Push(ctx, entry.Reference, artifact); err != nil {
			return err
		}
		digest, err := artifact.Digest()
		if err != nil {
			return fmt.Errorf("reading digest of %s: %w", entry.Reference, err)
		}
		logger.Info("Loaded image", "reference", entry.Reference, "digest", digest.String())
	}
	return nil
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}
