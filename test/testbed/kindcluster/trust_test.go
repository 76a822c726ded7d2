// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"
)

func certificate(t *testing.T) []byte {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(nil, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestTrustCARefusesWhatIsNoCertificate(t *testing.T) {
	t.Parallel()
	good := certificate(t)
	if err := checkCertificates(slices.Concat([]byte("a comment\n"), good, good)); err != nil {
		t.Errorf("two certificates: %v", err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("secret")})
	for name, content := range map[string][]byte{
		"empty":         nil,
		"no PEM":        []byte("certificate"),
		"a key":         slices.Concat(good, key),
		"broken inside": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}),
	} {
		if err := new(Cluster).TrustCA(t.Context(), "upstream", content); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, name := range []string{"", "../ca", "Upstream", "a b"} {
		if err := new(Cluster).TrustCA(t.Context(), name, good); err == nil {
			t.Errorf("name %q: accepted", name)
		}
	}
}
