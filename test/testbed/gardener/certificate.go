// SPDX-License-Identifier: Apache-2.0

package gardener

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	certificateValidity = 365 * 24 * time.Hour
	// certificateRenewal is the rest of the validity below which a new certificate is made.
	certificateRenewal = 30 * 24 * time.Hour
)

// certificate is a serving certificate with its key and the CA that signed it, all in PEM.
type certificate struct{ ca, cert, key []byte }

// newCertificate makes a certificate for dnsNames and a CA for it alone, whose key is thrown away.
func newCertificate(now time.Time, dnsNames ...string) (certificate, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return certificate{}, err
	}
	ca := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: dnsNames[0] + "-ca"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(certificateValidity),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return certificate{}, fmt.Errorf("signing the CA of %s: %w", dnsNames[0], err)
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return certificate{}, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: dnsNames[0]},
		DNSNames:     dnsNames,
		NotBefore:    ca.NotBefore,
		NotAfter:     ca.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return certificate{}, fmt.Errorf("signing the certificate of %s: %w", dnsNames[0], err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return certificate{}, err
	}
	return certificate{
		ca:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}),
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leafDER}),
		key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}, nil
}

// usable tells whether c is complete, made for dnsNames and valid for a while.
func (c certificate) usable(now time.Time, dnsNames ...string) bool {
	pair, err := tls.X509KeyPair(c.cert, c.key)
	if err != nil {
		return false
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(c.ca) {
		return false
	}
	later := now.Add(certificateRenewal)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: later}); err != nil {
		return false
	}
	return slices.Equal(pair.Leaf.DNSNames, dnsNames)
}

// serverNames are the names under which kube-apiserver calls the Service of a component.
func serverNames(component string) []string {
	return []string{component, component + "." + namespace, component + "." + namespace + ".svc"}
}

// tlsSecret is where the certificate of a component is kept.
func tlsSecret(component string, served certificate) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: component + "-tls", Namespace: namespace},
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{"ca.crt": served.ca, corev1.TLSCertKey: served.cert, corev1.TLSPrivateKeyKey: served.key},
	}
}

// ensureCertificate keeps the certificate of an earlier run, so that a second run restarts nothing.
func ensureCertificate(ctx context.Context, c client.Client, component string, now time.Time) (certificate, error) {
	secret := tlsSecret(component, certificate{})
	key := client.ObjectKeyFromObject(secret)
	if err := c.Get(ctx, key, secret); err == nil {
		kept := certificate{ca: secret.Data["ca.crt"], cert: secret.Data[corev1.TLSCertKey], key: secret.Data[corev1.TLSPrivateKeyKey]}
		if kept.usable(now, serverNames(component)...) {
			return kept, nil
		}
	} else if !apierrors.IsNotFound(err) {
		return certificate{}, fmt.Errorf("reading secret %s: %w", key, err)
	}
	return newCertificate(now, serverNames(component)...)
}
