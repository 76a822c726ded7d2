package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const header = "apiVersion: config.registry.extensions.gardener.cloud/v1alpha1\nkind: ControllerConfiguration\n"

func TestParse(t *testing.T) {
	t.Parallel()
	root := certificate(t)
	for _, tc := range []struct{ name, data, bundle, wantErr string }{
		{"nothing set", header, "", ""},
		{"blank bundle", header + withBundle(t, " \n"), "", ""},
		{"one root", header + withBundle(t, root), root, ""},
		{"two roots with text between", header + withBundle(t, root+"\n# the old one\n"+root), root + "\n# the old one\n" + root, ""},
		{"empty file", "", "", `it is "" "", want apiVersion: config.registry.extensions.gardener.cloud/v1alpha1, kind: ControllerConfiguration`},
		{"unknown field", header + "caBundel: x\n", "", `unknown field "caBundel"`},
		{"no PEM", header + withBundle(t, "/etc/ssl/ca.crt"), "", "caBundle: one of its PEM blocks cannot be read"},
		{"cut off at the end", header + withBundle(t, root+root[:len(root)/2]), "", "caBundle: one of its PEM blocks cannot be read"},
		{"cut off at the start", header + withBundle(t, root[:len(root)/2]+"\n"+root), "", "caBundle: one of its PEM blocks cannot be read"},
		{"a key", header + withBundle(t, strings.ReplaceAll(root, "CERTIFICATE", "PRIVATE KEY")), "", "caBundle: PEM block 1 is a PRIVATE KEY, want only certificates"},
		{"no certificate", header + withBundle(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}))), "", "caBundle: certificate 1: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse([]byte(tc.data))
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("got error %v, want %s", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.CABundle != tc.bundle {
				t.Errorf("got bundle %q, want %q", got.CABundle, tc.bundle)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, data string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if _, err := Load(write("good.yaml", header)); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "missing.yaml"):                                "opening the controller configuration: ",
		write("bad.yaml", "kind: x"):                                      "parsing the controller configuration " + dir,
		write("large.yaml", header+"# "+strings.Repeat("x", maxFileSize)): "it is larger than 1048576 bytes",
	} {
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load(%s): got error %v, want %s", path, err, want)
		}
	}
}

func withBundle(t *testing.T, bundle string) string {
	t.Helper()
	text, err := yaml.Marshal(map[string]string{"caBundle": bundle})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func certificate(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
