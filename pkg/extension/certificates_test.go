// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	secretsutils "github.com/gardener/gardener/pkg/utils/secrets"
	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	testclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Keys of the size that Gardener's library uses take seconds to make under the race detector. These are as different
// from each other as those.
func TestMain(m *testing.M) {
	var keys [8]*rsa.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = rsa.GenerateKey(rand.Reader, 1024); err != nil {
			panic(err)
		}
	}
	var next atomic.Uint64
	secretsutils.GenerateKey = func(io.Reader, int) (*rsa.PrivateKey, error) {
		return keys[next.Add(1)%uint64(len(keys))], nil
	}
	os.Exit(m.Run())
}

const (
	secured = `{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryConfig","caches":[
		{"upstream":"docker.io"},{"upstream":"ghcr.io","http":{"tls":false}},{"upstream":"quay.io","serviceNameSuffix":"ours"}]}`
	allSecured = `{"apiVersion":"registry.extensions.gardener.cloud/v1alpha1","kind":"RegistryConfig","caches":[{"upstream":"docker.io"}]}`
	allPlain   = `{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryConfig","caches":[{"upstream":"docker.io","http":{"tls":false}}]}`
)

func TestReconcileWithTLS(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.askRaw(t, []byte(secured)))

	var endpoints []string
	for _, cache := range s.status(t).Caches {
		endpoints = append(endpoints, cache.Endpoint)
	}
	if diff := cmp.Diff([]string{"https://10.96.0.20:5000", "http://10.96.0.21:5000", "https://10.96.0.22:5000"}, endpoints); diff != "" {
		t.Errorf("endpoints: -want +got:\n%s", diff)
	}
	want := []string{
		"Secret registry-docker-io-config", "Secret registry-docker-io-tls", "Secret registry-ghcr-io-config",
		"Secret registry-ours-config", "Secret registry-ours-tls",
		"Service registry-docker-io 10.96.0.20", "Service registry-ghcr-io 10.96.0.21", "Service registry-ours 10.96.0.22",
		"StatefulSet registry-docker-io", "StatefulSet registry-ghcr-io", "StatefulSet registry-ours",
	}
	if diff := cmp.Diff(want, s.inShoot(t)); diff != "" {
		t.Errorf("objects: -want +got:\n%s", diff)
	}
	roots := s.roots(t)
	for name, hosts := range map[string][]string{
		"registry-docker-io": {"10.96.0.20", "registry-docker-io.kube-system", "registry-docker-io.kube-system.svc.cluster.local"},
		"registry-ours":      {"10.96.0.22", "registry-ours.kube-system.svc"},
	} {
		certificate := s.certificate(t, name)
		for _, host := range hosts {
			if err := verify(roots, certificate, host); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := verify(roots, certificate, "10.96.0.21"); err == nil {
			t.Errorf("%s has the address of another cache", name)
		}
		if validity := certificate.NotAfter.Sub(certificate.NotBefore); validity.Round(time.Hour) != 90*24*time.Hour {
			t.Errorf("%s is valid for %s, want 90 days", name, validity)
		}
	}
	for _, secret := range s.managed(t) {
		_, isCA := secret.Data["ca.key"]
		if persisted := secret.Labels["persist"] == "true"; persisted != isCA {
			t.Errorf("Secret %s goes to another Seed: %t, want that of the CA only", secret.Name, persisted)
		}
	}

	before := s.writes
	s.reconcile(t, s.extension(t))
	if s.writes != before {
		t.Errorf("%d writes although nothing has changed: %v", s.writes-before, s.takeLog())
	}
}

func TestIPv6Certificate(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.createService(t, "fd00::14")
	s.reconcile(t, s.askRaw(t, []byte(allSecured)))
	if got := s.status(t).Caches[0].Endpoint; got != "https://[fd00::14]:5000" {
		t.Errorf("endpoint is %s", got)
	}
	if err := verify(s.roots(t), s.certificate(t, "registry-docker-io"), "fd00::14"); err != nil {
		t.Error(err)
	}
}

// Whatever write fails, the status never names roots that are not there, and the next attempt ends where an undisturbed
// one would have.
func TestCertificatesFailAtAnyWrite(t *testing.T) {
	t.Parallel()
	rotation := func(phase gardencorev1beta1.CredentialsRotationPhase) func(t *testing.T, s *testShoot) {
		return func(t *testing.T, s *testShoot) { s.rotate(t, phase, time.Unix(1000, 0)) }
	}
	for _, tc := range []struct {
		name  string
		steps []func(t *testing.T, s *testShoot) // the last one is disturbed
		want  int                                // Secrets of the secrets manager in the end
		// atLeast is how many writes there must be for the test to make sense.
		atLeast int
	}{
		{"new", []func(*testing.T, *testShoot){func(t *testing.T, s *testShoot) { s.askRaw(t, []byte(allSecured)) }}, 3, 9},
		{"switched off", []func(*testing.T, *testShoot){
			func(t *testing.T, s *testShoot) { s.askRaw(t, []byte(allSecured)) },
			func(t *testing.T, s *testShoot) { s.askRaw(t, []byte(allPlain)) },
		}, 0, 6},
		{"preparing a rotation", []func(*testing.T, *testShoot){
			func(t *testing.T, s *testShoot) { s.askRaw(t, []byte(allSecured)) },
			rotation(gardencorev1beta1.RotationPreparing),
		}, 4, 3},
		{"completing a rotation", []func(*testing.T, *testShoot){
			func(t *testing.T, s *testShoot) { s.askRaw(t, []byte(allSecured)) },
			rotation(gardencorev1beta1.RotationPreparing),
			rotation(gardencorev1beta1.RotationCompleting),
		}, 3, 8},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			for failAt := 1; ; failAt++ {
				s := newTestShoot(t)
				for i, step := range tc.steps {
					step(t, s)
					if i < len(tc.steps)-1 {
						s.reconcile(t, s.extension(t))
					}
				}
				ex := s.extension(t)
				s.failAt = s.writes + failAt
				err := s.actuator.Reconcile(t.Context(), logr.Discard(), ex)
				last := s.writes < s.failAt
				s.failAt = 0
				if !last && !errors.Is(err, errInjected) {
					t.Fatalf("write %d fails: got error %v", failAt, err)
				}
				if ex := s.extension(t); ex.Status.ProviderStatus != nil && s.status(t).CASecretName != nil {
					s.roots(t)
				}
				s.reconcile(t, s.extension(t))
				if got := len(s.managed(t)); got != tc.want {
					t.Errorf("write %d fails: %d Secrets are left, want %d", failAt, got, tc.want)
				}
				if (s.status(t).CASecretName != nil) != (tc.want > 0) {
					t.Errorf("write %d fails: the roots are %v", failAt, s.status(t).CASecretName)
				}
				if tc.want > 0 {
					if err := verify(s.roots(t), s.certificate(t, "registry-docker-io"), "10.96.0.20"); err != nil {
						t.Errorf("write %d fails: %v", failAt, err)
					}
				}
				if last {
					if failAt < tc.atLeast {
						t.Errorf("only %d writes, this test does not test what it should", failAt-1)
					}
					return
				}
			}
		})
	}
}

func TestCertificateIsRenewed(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	clock := testclock.NewFakeClock(time.Now())
	s.actuator.clock = clock
	s.reconcile(t, s.askRaw(t, []byte(allSecured)))
	first, secret := s.certificate(t, "registry-docker-io"), *s.status(t).CASecretName

	clock.Step(71 * 24 * time.Hour)
	s.reconcile(t, s.extension(t))
	if !s.certificate(t, "registry-docker-io").Equal(first) {
		t.Error("renewed after 71 of 90 days")
	}
	clock.Step(2 * 24 * time.Hour)
	s.reconcile(t, s.extension(t))
	second := s.certificate(t, "registry-docker-io")
	if second.Equal(first) {
		t.Error("not renewed after 73 of 90 days")
	}
	if err := verify(s.roots(t), second, "10.96.0.20"); err != nil {
		t.Error(err)
	}
	if got := *s.status(t).CASecretName; got != secret {
		t.Errorf("the roots are in %s now, nodes would get new files for nothing", got)
	}
	if got := len(s.managed(t)); got != 3 {
		t.Errorf("%d Secrets in the Seed, want CA, bundle and certificate", got)
	}
}

func TestTLSOnOffOn(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	for range 2 {
		s.reconcile(t, s.askRaw(t, []byte(allSecured)))
		if got := s.status(t).Caches[0].Endpoint; got != "https://10.96.0.20:5000" {
			t.Errorf("on: endpoint is %s", got)
		}
		if err := verify(s.roots(t), s.certificate(t, "registry-docker-io"), "10.96.0.20"); err != nil {
			t.Error(err)
		}

		s.reconcile(t, s.askRaw(t, []byte(allPlain)))
		status := s.status(t)
		if status.CASecretName != nil || status.Caches[0].Endpoint != "http://10.96.0.20:5000" {
			t.Errorf("off: status is %+v", status)
		}
		if slices.Contains(s.inShoot(t), "Secret registry-docker-io-tls") {
			t.Error("off: the certificate stays in the Shoot")
		}
		if left := s.managed(t); len(left) > 0 {
			t.Errorf("off: %d Secrets stay in the Seed", len(left))
		}
	}
}

func TestCertificateFollowsTheAddress(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.askRaw(t, []byte(allSecured)))
	s.deleteService(t)
	s.createService(t, "10.96.0.99")
	s.reconcile(t, s.extension(t))
	certificate := s.certificate(t, "registry-docker-io")
	if err := verify(s.roots(t), certificate, "10.96.0.99"); err != nil {
		t.Error(err)
	}
	if err := verify(s.roots(t), certificate, "10.96.0.20"); err == nil {
		t.Error("the certificate still has the old address")
	}
	if got := len(s.managed(t)); got != 3 {
		t.Errorf("%d Secrets in the Seed, want CA, bundle and certificate", got)
	}
}

// In each phase there are nodes and caches that have not heard of it yet. All of them must get on with each other.
func TestRotation(t *testing.T) {
	t.Parallel()
	type step struct {
		phase       gardencorev1beta1.CredentialsRotationPhase
		roots       []*x509.Certificate
		certificate *x509.Certificate
	}
	s := newTestShoot(t)
	s.reconcile(t, s.askRaw(t, []byte(allSecured)))
	steps := []step{{"none", s.roots(t), s.certificate(t, "registry-docker-io")}}
	for _, phase := range []gardencorev1beta1.CredentialsRotationPhase{
		gardencorev1beta1.RotationPreparing, gardencorev1beta1.RotationPrepared, gardencorev1beta1.RotationCompleting, gardencorev1beta1.RotationCompleted,
	} {
		s.rotate(t, phase, time.Unix(1000, 0))
		s.reconcile(t, s.extension(t))
		steps = append(steps, step{phase, s.roots(t), s.certificate(t, "registry-docker-io")})
		for range 2 {
			before := s.writes
			s.reconcile(t, s.extension(t))
			if s.writes != before {
				t.Errorf("%s: %d writes in the second reconciliation", phase, s.writes-before)
			}
		}
	}

	for i, current := range steps {
		want := map[string]int{"none": 1, "Preparing": 2, "Prepared": 2, "Completing": 1, "Completed": 1}[string(current.phase)]
		if len(current.roots) != want {
			t.Errorf("%s: nodes get %d CAs, want %d", current.phase, len(current.roots), want)
		}
		if err := verify(current.roots, current.certificate, "10.96.0.20"); err != nil {
			t.Errorf("%s: %v", current.phase, err)
		}
		if i == 0 {
			continue
		}
		previous := steps[i-1]
		if err := verify(previous.roots, current.certificate, "10.96.0.20"); err != nil {
			t.Errorf("%s: a node that has not got the CAs of this phase yet: %v", current.phase, err)
		}
		// Nodes keep a CA for a while that is offered no longer.
		if err := verify(append(slices.Clone(previous.roots), current.roots...), previous.certificate, "10.96.0.20"); err != nil {
			t.Errorf("%s: a cache that has not got the certificate of this phase yet: %v", current.phase, err)
		}
	}
	first, last := steps[0], steps[len(steps)-1]
	if first.roots[0].Equal(last.roots[0]) {
		t.Error("the CA is the same after the rotation")
	}
	if err := verify(last.roots, first.certificate, "10.96.0.20"); err == nil {
		t.Error("a certificate of the old CA is still trusted")
	}
	if got := len(s.managed(t)); got != 3 {
		t.Errorf("%d Secrets in the Seed, want CA, bundle and certificate", got)
	}
}

// A Shoot that sleeps through a rotation must not keep the old CA until the next one.
func TestRotationThatNobodyHasSeen(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.askRaw(t, []byte(allSecured)))
	before := s.roots(t)
	s.rotate(t, gardencorev1beta1.RotationCompleted, time.Unix(1000, 0))
	s.reconcile(t, s.extension(t))
	after := s.roots(t)
	if len(after) != 1 || after[0].Equal(before[0]) {
		t.Errorf("nodes get %d CAs, want the new one alone", len(after))
	}
	if err := verify(after, s.certificate(t, "registry-docker-io"), "10.96.0.20"); err != nil {
		t.Error(err)
	}
}

func TestDeletionRemovesTheCertificates(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Actuator, context.Context, logr.Logger, *extensionsv1alpha1.Extension) error{
		"delete": (*Actuator).Delete, "delete while hibernated": (*Actuator).Delete, "force-delete": (*Actuator).ForceDelete,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestShoot(t)
			s.reconcile(t, s.askRaw(t, []byte(allSecured)))
			other := &corev1.Secret{}
			other.Namespace, other.Name = shootNamespace, "ca"
			other.Labels = map[string]string{"managed-by": "secrets-manager", "manager-identity": "gardenlet", "name": "ca"}
			if err := s.seed.Create(t.Context(), other); err != nil {
				t.Fatal(err)
			}
			if name == "delete while hibernated" {
				s.hibernate(t)
			}
			for range 2 {
				if err := end(s.actuator, t.Context(), logr.Discard(), s.extension(t)); err != nil {
					t.Fatal(err)
				}
				if left := s.managed(t); len(left) > 0 {
					t.Errorf("%d Secrets stay in the Seed", len(left))
				}
			}
			if err := s.seed.Get(t.Context(), client.ObjectKeyFromObject(other), other); err != nil {
				t.Errorf("the CA of the Shoot: %v", err)
			}
		})
	}
}

// gardenlet copies the persisted Secrets after Migrate, and makes them in the other Seed before Restore.
func TestMigrationKeepsTheCA(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.askRaw(t, []byte(allSecured)))
	roots, certificate := s.roots(t), s.certificate(t, "registry-docker-io")
	if err := s.actuator.Migrate(t.Context(), logr.Discard(), s.extension(t)); err != nil {
		t.Fatal(err)
	}
	for _, secret := range s.managed(t) {
		if secret.Labels["persist"] != "true" {
			if err := s.seed.Delete(t.Context(), &secret); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.loseStatus(t)
	if err := s.actuator.Restore(t.Context(), logr.Discard(), s.extension(t)); err != nil {
		t.Fatal(err)
	}
	if got := s.roots(t); len(got) != 1 || !got[0].Equal(roots[0]) {
		t.Error("the CA has changed: nodes would withdraw the caches")
	}
	if err := verify(roots, s.certificate(t, "registry-docker-io"), "10.96.0.20"); err != nil {
		t.Error(err)
	}
	if err := verify(s.roots(t), certificate, "10.96.0.20"); err != nil {
		t.Errorf("a cache that still has its old certificate: %v", err)
	}
}

func TestReadinessKeepsTheRoots(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.askRaw(t, []byte(allSecured)))
	want := s.status(t).CASecretName
	s.setReady(t, "docker.io", 1)
	if _, err := (&readiness{seed: s.seed, forShoot: s.client}).Reconcile(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	status := s.status(t)
	if status.Caches[0].Conditions[0].Status != "True" {
		t.Fatal("the status was not written")
	}
	if diff := cmp.Diff(want, status.CASecretName); diff != "" {
		t.Errorf("caSecretName: -want +got:\n%s", diff)
	}
}

// rotate sets the phase of the rotation of the Shoot's CAs, as gardenlet does before it asks for a reconciliation.
func (s *testShoot) rotate(t *testing.T, phase gardencorev1beta1.CredentialsRotationPhase, initiated time.Time) {
	t.Helper()
	cluster := &extensionsv1alpha1.Cluster{}
	if err := s.seed.Get(t.Context(), client.ObjectKey{Name: shootNamespace}, cluster); err != nil {
		t.Fatal(err)
	}
	cluster.Spec.Shoot = runtime.RawExtension{Raw: fmt.Appendf(nil, `{"apiVersion":"core.gardener.cloud/v1beta1","kind":"Shoot","metadata":{"name":"crazy-botany"},
		"status":{"credentials":{"rotation":{"certificateAuthorities":{"phase":%q,"lastInitiationTime":%q}}}}}`, phase, initiated.UTC().Format(time.RFC3339))}
	if err := s.seed.Update(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
}

// managed are the Secrets of the extension's secrets manager.
func (s *testShoot) managed(t *testing.T) []corev1.Secret {
	t.Helper()
	list := &corev1.SecretList{}
	if err := s.seed.List(t.Context(), list, client.InNamespace(shootNamespace), client.MatchingLabels{"manager-identity": managerIdentity}); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// roots are the CAs that nodes get.
func (s *testShoot) roots(t *testing.T) []*x509.Certificate {
	t.Helper()
	name := s.status(t).CASecretName
	if name == nil {
		t.Fatal("the status has no caSecretName")
	}
	secret := &corev1.Secret{}
	if err := s.seed.Get(t.Context(), client.ObjectKey{Namespace: shootNamespace, Name: *name}, secret); err != nil {
		t.Fatal(err)
	}
	return parse(t, secret.Data["bundle.crt"])
}

// certificate is what the cache whose StatefulSet has that name gets from the kubelet.
func (s *testShoot) certificate(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	secret := &corev1.Secret{}
	if err := s.shoot.Get(t.Context(), client.ObjectKey{Namespace: "kube-system", Name: name + "-tls"}, secret); err != nil {
		t.Fatal(err)
	}
	if keys := strings.Count(string(secret.Data["tls.key"]), "-----BEGIN RSA PRIVATE KEY-----"); keys != 1 || len(secret.Data) != 2 {
		t.Fatalf("Secret %s has %d keys and %d entries", secret.Name, keys, len(secret.Data))
	}
	return parse(t, secret.Data["tls.crt"])[0]
}

func parse(t *testing.T, text []byte) []*x509.Certificate {
	t.Helper()
	var all []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, certificate)
	}
	if len(all) == 0 {
		t.Fatalf("no certificate in %q", text)
	}
	return all
}

// verify is what a client does that trusts roots and connects to host, a name or an address.
func verify(roots []*x509.Certificate, certificate *x509.Certificate, host string) error {
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	if net.ParseIP(host) != nil {
		host = "[" + host + "]"
	}
	_, err := certificate.Verify(x509.VerifyOptions{Roots: pool, DNSName: host, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err
}
