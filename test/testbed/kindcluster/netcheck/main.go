// SPDX-License-Identifier: Apache-2.0

// Command netcheck runs in a pod on every node while the cluster's network is verified. It tells which node it is on,
// and what a request or a name lookup looks like from inside of its pod.
//
//	GET /name          the node's name (environment variable NODE_NAME)
//	GET /get?url=U     the body that U answers, or the error as status 502
//	GET /lookup?name=N the addresses of N, or the error as status 502
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	address = ":8080"
	// probeTimeout bounds a request or lookup. Within a cluster either takes milliseconds, and a packet that is
	// dropped is repeated after one second.
	probeTimeout = 2 * time.Second
	maxBody      = 64 << 10
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := serve(ctx); err != nil {
		log.Fatal(err)
	}
}

func serve(ctx context.Context) error {
	server := &http.Server{Addr: address, Handler: handler(os.Getenv("NODE_NAME")), ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func handler(node string) http.Handler {
	// No connection is kept, so that each request proves that one can be made now.
	client := &http.Client{Timeout: probeTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /name", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, node) })
	mux.HandleFunc("GET /get", func(w http.ResponseWriter, r *http.Request) {
		answer(w)(get(r.Context(), client, r.FormValue("url")))
	})
	mux.HandleFunc("GET /lookup", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), probeTimeout)
		defer cancel()
		addresses, err := net.DefaultResolver.LookupHost(ctx, r.FormValue("name"))
		answer(w)(strings.Join(addresses, " "), err)
	})
	return mux
}

func answer(w http.ResponseWriter) func(body string, err error) {
	return func(body string, err error) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprint(w, body)
	}
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %s", resp.Status)
	}
	return string(body), nil
}
