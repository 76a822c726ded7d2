// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"

	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

func TestRunServesTheCatalogue(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("nobody runs it"), 0o600); err != nil {
		t.Fatal(err)
	}
	caDir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reader, writer := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, []string{
			"--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir", t.TempDir(), "--ca-dir", caDir,
			"--sample", program, "--token-hosts", "docker.io,ghcr.io",
		}, writer, smallImages)
		writer.CloseWithError(io.EOF)
		ended <- err
	}()
	lines := bufio.NewScanner(reader)
	registry, admin := serving(t, lines)
	go func() { _, _ = io.Copy(io.Discard, reader) }() // it ends with run

	pem, err := os.ReadFile(filepath.Join(caDir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("ca.crt holds no certificate")
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", registry)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	for _, entry := range smallImages(program) {
		if _, err := crane.Digest(entry.Reference, crane.WithTransport(transport)); err != nil {
			t.Errorf("%s is not served: %v", entry.Reference, err)
		}
	}
	client := upstream.NewClient("http://" + admin)
	defer client.Close()
	requests, err := client.Requests(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	tokens := map[string]int{}
	for _, summary := range upstream.Summarise(requests) {
		tokens[summary.Host] += summary.Requests[upstream.Token]
	}
	if tokens["docker.io"] == 0 || tokens["ghcr.io"] == 0 || tokens["quay.io"] != 0 {
		t.Errorf("tokens were asked for %v times, want some for docker.io and ghcr.io and none for quay.io", tokens)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run ended with %v", err)
	}
}

// smallImages leaves the one image out that takes seconds under the race detector.
func smallImages(program string) []images.Entry {
	return slices.DeleteFunc(images.Catalogue(program), func(e images.Entry) bool { return e.Reference == images.OpsToolbelt })
}

// serving reads the log until the server listens and returns its addresses.
func serving(t *testing.T, lines *bufio.Scanner) (registry, admin string) {
	t.Helper()
	for lines.Scan() {
		var entry struct{ Msg, Registry, Admin string }
		if err := json.Unmarshal(lines.Bytes(), &entry); err != nil {
			t.Fatalf("log line %q: %v", lines.Text(), err)
		}
		if entry.Msg == "Serving" {
			return entry.Registry, entry.Admin
		}
	}
	t.Fatal("the server did not start")
	return "", ""
}

func TestRunRefusesBadInput(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"unknown flag":     {[]string{"--nope"}, "flag provided but not defined: -nope"},
		"argument":         {[]string{"nope"}, `unexpected argument "nope"`},
		"address":          {[]string{"--listen", "nope"}, "missing port in address"},
		"missing program":  {[]string{"--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--sample", "/nope"}, "/nope"},
		"unusable ca file": {[]string{"--ca-dir", "/dev/null/ca"}, "/dev/null/ca"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			defaults := []string{"--data-dir", t.TempDir(), "--ca-dir", t.TempDir()}
			err := run(t.Context(), append(defaults, tc.args...), io.Discard, smallImages)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want one with %q", err, tc.want)
			}
		})
	}
}
