// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoadOrCreate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "upstream")
	created, err := LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, caKeyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key file has mode %v, %v; want 0600", info.Mode(), err)
	}
	loaded, err := LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	if string(loaded.PEM()) != string(created.PEM()) {
		t.Error("the second call made another CA")
	}
	onDisk, err := os.ReadFile(filepath.Join(dir, caCertFile))
	if err != nil || string(onDisk) != string(created.PEM()) {
		t.Errorf("ca.crt is %q, %v", onDisk, err)
	}

	if err := os.Remove(filepath.Join(dir, caCertFile)); err != nil {
		t.Fatal(err)
	}
	renewed, err := LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	if string(renewed.PEM()) == string(created.PEM()) {
		t.Error("a folder without certificate still gives the old CA")
	}
	if err := os.WriteFile(filepath.Join(dir, caCertFile), created.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreate(dir); err == nil || !strings.Contains(err.Error(), "remove the folder") {
		t.Errorf("a certificate of another key gives the error %v", err)
	}
}

func TestCertificate(t *testing.T) {
	t.Parallel()
	ca, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Certificate("registry-1.docker.io", "10.89.0.5")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca.PEM()) {
		t.Fatal("the CA's PEM holds no certificate")
	}
	for _, host := range []string{"registry-1.docker.io", "10.89.0.5"} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("the certificate is not valid for %s: %v", host, err)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "ghcr.io"}); err == nil {
		t.Error("the certificate is valid for a host that it was not made for")
	}
	if _, err := ca.Certificate(); err == nil {
		t.Error("a certificate without a host was made")
	}
}
