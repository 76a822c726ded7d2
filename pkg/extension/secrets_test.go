// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1beta1helper "github.com/gardener/gardener/pkg/api/core/v1beta1/helper"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const privateConfig = `{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryConfig","caches":[
	{"upstream":"docker.io","secretReferenceName":"credentials","caBundleSecretReferenceName":"roots"},{"upstream":"ghcr.io"}]}`

func TestSecretsOfTheShootOwner(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	operator, owner, other := certificate(t), certificate(t), certificate(t)
	s.actuator.options.CABundle = operator
	s.copySecret(t, "credentials-1", map[string]string{"username": "robot", "password": "hunter2"})
	s.copySecret(t, "credentials-2", map[string]string{"username": "robot", "password": "correct horse"})
	s.copySecret(t, "roots-1", map[string]string{"bundle.crt": owner})
	s.copySecret(t, "roots-2", map[string]string{"bundle.crt": other})

	s.refer(t, map[string]string{"credentials": "credentials-1", "roots": "roots-1"})
	s.reconcile(t, s.askRaw(t, []byte(privateConfig)))
	before := s.configSecret(t, "registry-docker-io")
	template := s.podTemplate(t, "registry-docker-io")
	if diff := cmp.Diff(map[string]string{"username": "robot", "password": "hunter2", "ca.crt": operator + owner}, withoutConfig(before)); diff != "" {
		t.Errorf("new: -want +got:\n%s", diff)
	}
	for _, line := range []string{"credentialsDir: /etc/registry-cache", "caFile: /etc/registry-cache/ca.crt"} {
		if !strings.Contains(before["config.yaml"], line) {
			t.Errorf("the server is not told %q:\n%s", line, before["config.yaml"])
		}
	}
	neighbour := s.configSecret(t, "registry-ghcr-io")
	if diff := cmp.Diff(map[string]string{"ca.crt": operator}, withoutConfig(neighbour)); diff != "" {
		t.Errorf("the other cache: -want +got:\n%s", diff)
	}

	s.refer(t, map[string]string{"credentials": "credentials-2", "roots": "roots-2"})
	objects := s.inShoot(t)
	s.reconcile(t, s.extension(t))
	after := s.configSecret(t, "registry-docker-io")
	if diff := cmp.Diff(map[string]string{"username": "robot", "password": "correct horse", "ca.crt": operator + other}, withoutConfig(after)); diff != "" {
		t.Errorf("rotated: -want +got:\n%s", diff)
	}
	if diff := cmp.Diff(template, s.podTemplate(t, "registry-docker-io")); diff != "" {
		t.Errorf("the rotation restarts the pod: -before +after:\n%s", diff)
	}
	if diff := cmp.Diff(objects, s.inShoot(t)); diff != "" {
		t.Errorf("the rotation changes objects: -before +after:\n%s", diff)
	}
	writes := s.writes
	s.reconcile(t, s.extension(t))
	if s.writes != writes {
		t.Errorf("%d writes although nothing has changed: %v", s.writes-writes, s.takeLog())
	}

	s.reconcile(t, s.ask(t, "docker.io", "ghcr.io"))
	removed := s.configSecret(t, "registry-docker-io")
	if diff := cmp.Diff(map[string]string{"ca.crt": operator}, withoutConfig(removed)); diff != "" {
		t.Errorf("removed: -want +got:\n%s", diff)
	}
	if strings.Contains(removed["config.yaml"], "credentialsDir") {
		t.Errorf("removed: the server would look for credentials:\n%s", removed["config.yaml"])
	}
	if cmp.Equal(template, s.podTemplate(t, "registry-docker-io")) {
		t.Error("removed: the server is not restarted and would look for credentials")
	}
}

func TestProxyCredentials(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.copySecret(t, "proxy-1", map[string]string{"username": "robot", "password": "hunter2"})
	s.refer(t, map[string]string{"proxy": "proxy-1"})
	s.reconcile(t, s.askRaw(t, []byte(`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryConfig","caches":[
		{"upstream":"docker.io","proxy":{"httpsProxy":"http://proxy:3128","secretReferenceName":"proxy"}}]}`)))
	config := s.configSecret(t, "registry-docker-io")
	if diff := cmp.Diff(map[string]string{"proxy-username": "robot", "proxy-password": "hunter2"}, withoutConfig(config)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if line := "proxyCredentialsDir: /etc/registry-cache"; !strings.Contains(config["config.yaml"], line) {
		t.Errorf("the configuration does not contain %q:\n%s", line, config["config.yaml"])
	}
}

func TestBadSecretChangesNothing(t *testing.T) {
	t.Parallel()
	const (
		credentials = "providerConfig.caches[0].secretReferenceName: "
		roots       = "providerConfig.caches[0].caBundleSecretReferenceName: "
		// secret is what must not be repeated.
		secret = "hunter2"
	)
	good := map[string]string{"username": "robot", "password": "correct horse"}
	for _, tc := range []struct {
		name                string
		credentials, bundle map[string]string
		refer               map[string]string
		mutable             bool
		want                []string
		wantRetry           bool
	}{
		{name: "no entry", want: []string{
			credentials + `Invalid value: "credentials": must be the name of an entry of spec.resources`,
			roots + `Invalid value: "roots": must be the name of an entry of spec.resources`,
		}},
		{name: "no Secret", refer: map[string]string{"credentials": "c", "roots": "r"}, want: []string{
			credentials + `Invalid value: "credentials": Secret "c", to which the entry of spec.resources refers, must exist`,
			roots + `Invalid value: "roots": Secret "r", to which`, `secrets "ref-r" not found`,
		}, wantRetry: true},
		{
			name: "one bad Secret, one that is missing", credentials: map[string]string{"username": secret}, refer: map[string]string{"credentials": "c", "roots": "r"},
			want: []string{credentials + `Invalid value: "credentials": Secret "c" must have the keys "password", "username"`, roots}, wantRetry: true,
		},
		{
			name: "key of something else", credentials: map[string]string{".dockerconfigjson": secret}, bundle: map[string]string{"bundle.crt": ""},
			refer: map[string]string{"credentials": "c", "roots": "r"},
			want: []string{
				credentials + `Invalid value: "credentials": Secret "c" must have the keys "password", "username"`,
				roots + `Invalid value: "roots": Secret "r" must have certificates in PEM as "bundle.crt": `,
			},
		},
		{
			name: "key in place of roots", credentials: good, bundle: map[string]string{"bundle.crt": "-----BEGIN PRIVATE KEY-----\n" + secret + "\n-----END PRIVATE KEY-----\n"},
			refer: map[string]string{"credentials": "c", "roots": "r"},
			want:  []string{roots + `Invalid value: "roots": Secret "r" must have certificates in PEM`},
		},
		{
			name: "white space", credentials: map[string]string{"username": secret + "\n", "password": secret}, bundle: map[string]string{"bundle.crt": certificate(t)},
			refer: map[string]string{"credentials": "c", "roots": "r"},
			want:  []string{credentials + `Invalid value: "credentials": Secret "c" has an invalid "username", it must not have white space; a line feed at its end counts`},
		},
		{
			name: "can be changed", credentials: map[string]string{"username": "robot", "password": secret}, bundle: map[string]string{"bundle.crt": certificate(t)}, mutable: true,
			refer: map[string]string{"credentials": "c", "roots": "r"},
			want:  []string{credentials + `Invalid value: "credentials": Secret "c" must have "immutable: true"`, roots},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newTestShoot(t)
			s.reconcile(t, s.ask(t, "docker.io"))
			objects := s.inShoot(t)
			s.refer(t, tc.refer)
			for name, data := range map[string]map[string]string{"c": tc.credentials, "r": tc.bundle} {
				if data != nil {
					s.copySecret(t, name, data)
				}
				if data != nil && tc.mutable {
					s.makeMutable(t, name)
				}
			}
			ex := s.askRaw(t, []byte(privateConfig))
			writes := s.writes
			err := s.actuator.Reconcile(t.Context(), logr.Discard(), ex)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got error %v, want %s…", err, want)
				}
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error repeats the Secret: %v", err)
			}
			wantCodes := []gardencorev1beta1.ErrorCode{gardencorev1beta1.ErrorConfigurationProblem}
			if tc.wantRetry {
				wantCodes = nil
			}
			if codes := v1beta1helper.ExtractErrorCodes(err); !slices.Equal(codes, wantCodes) {
				t.Errorf("got error codes %v, want %v", codes, wantCodes)
			}
			if s.writes != writes {
				t.Errorf("%d writes", s.writes-writes)
			}
			if diff := cmp.Diff(objects, s.inShoot(t)); diff != "" {
				t.Errorf("the running cache has changed: %s", diff)
			}
		})
	}
}

// gardenlet does not wait until the Seed has its copy. An error would fail the reconciliation of the Shoot.
func TestCopyOfASecretMayBeLate(t *testing.T) {
	t.Parallel()
	roots := certificate(t)
	synctest.Test(t, func(t *testing.T) {
		s := newTestShoot(t)
		s.actuator.waitTimeout = waitTimeout
		s.actuator.pollInterval = pollInterval
		s.refer(t, map[string]string{"credentials": "c", "roots": "r"})
		s.copySecret(t, "r", map[string]string{"bundle.crt": roots})
		ex := s.askRaw(t, []byte(privateConfig))

		began := time.Now()
		err := s.actuator.Reconcile(t.Context(), logr.Discard(), ex)
		if took := time.Since(began); !strings.Contains(err.Error(), `Secret "c", to which`) || took != copyTimeout {
			t.Errorf("got error %v after %s, want one about the Secret after %s", err, took, copyTimeout)
		}

		time.AfterFunc(copyTimeout-time.Second, func() { s.copySecret(t, "c", map[string]string{"username": "robot", "password": "hunter2"}) })
		s.reconcile(t, ex)
		if got := s.configSecret(t, "registry-docker-io")["password"]; got != "hunter2" {
			t.Errorf("the password is %q", got)
		}
	})
}

func TestUnreadableSecretIsNoConfigurationProblem(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.refer(t, map[string]string{"credentials": "c", "roots": "r"})
	ex := s.askRaw(t, []byte(privateConfig))
	forbidden := apierrors.NewForbidden(corev1.Resource("secrets"), "ref-c", nil)
	s.actuator.seed = failingSecrets{s.seed, forbidden}
	err := s.actuator.Reconcile(t.Context(), logr.Discard(), ex)
	if !apierrors.IsForbidden(err) || !strings.HasPrefix(err.Error(), "[providerConfig.caches[0].secretReferenceName: Internal error: reading Secret \"c\": ") {
		t.Errorf("got error %v", err)
	}
	if codes := v1beta1helper.ExtractErrorCodes(err); len(codes) > 0 {
		t.Errorf("got error codes %v", codes)
	}
}

// What is secret must be in Secrets alone.
func TestSecretsAreNotRepeated(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	var log bytes.Buffer
	logger := funcr.New(func(prefix, args string) { log.WriteString(prefix + args + "\n") }, funcr.Options{Verbosity: 10})
	s.refer(t, map[string]string{"credentials": "c", "roots": "r"})
	s.copySecret(t, "c", map[string]string{"username": "secret-robot", "password": "hunter2"})
	s.copySecret(t, "r", map[string]string{"bundle.crt": certificate(t)})
	if err := s.actuator.Reconcile(t.Context(), logger, s.askRaw(t, []byte(privateConfig))); err != nil {
		t.Fatal(err)
	}
	// The removal is what the actuator logs.
	if err := s.actuator.Reconcile(t.Context(), logger, s.askRaw(t, []byte(strings.Replace(privateConfig, `,{"upstream":"ghcr.io"}`, "", 1)))); err != nil {
		t.Fatal(err)
	}
	status, err := json.Marshal(s.extension(t))
	if err != nil {
		t.Fatal(err)
	}
	template, err := json.Marshal(s.podTemplate(t, "registry-docker-io"))
	if err != nil {
		t.Fatal(err)
	}
	if log.Len() == 0 {
		t.Error("nothing was logged, this test does not test what it should")
	}
	for place, text := range map[string]string{
		"log": log.String(), "Extension": string(status), "pod template": string(template), "configuration": s.configSecret(t, "registry-docker-io")["config.yaml"],
	} {
		if strings.Contains(text, "hunter2") || strings.Contains(text, "secret-robot") {
			t.Errorf("%s: %s", place, text)
		}
	}
}

// failingSecrets fails to read Secrets.
type failingSecrets struct {
	client.Client
	err error
}

func (c failingSecrets) Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
	if _, ok := obj.(*corev1.Secret); ok {
		return c.err
	}
	return c.Client.Get(ctx, key, obj, opts...)
}

// refer makes the entries of the Shoot's spec.resources refer to Secrets.
func (s *testShoot) refer(t *testing.T, secrets map[string]string) {
	t.Helper()
	shoot := &gardencorev1beta1.Shoot{
		TypeMeta:   metav1.TypeMeta{APIVersion: "core.gardener.cloud/v1beta1", Kind: "Shoot"},
		ObjectMeta: metav1.ObjectMeta{Name: "crazy-botany"},
	}
	for entry, secret := range secrets {
		shoot.Spec.Resources = append(shoot.Spec.Resources, gardencorev1beta1.NamedResourceReference{
			Name: entry, ResourceRef: autoscalingv1.CrossVersionObjectReference{APIVersion: "v1", Kind: "Secret", Name: secret},
		})
	}
	raw, err := json.Marshal(shoot)
	if err != nil {
		t.Fatal(err)
	}
	cluster := &extensionsv1alpha1.Cluster{}
	if err := s.seed.Get(t.Context(), client.ObjectKey{Name: shootNamespace}, cluster); err != nil {
		t.Fatal(err)
	}
	cluster.Spec.Shoot = runtime.RawExtension{Raw: raw}
	if err := s.seed.Update(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
}

// copySecret does gardenlet's part for a Secret of the Shoot owner.
func (s *testShoot) copySecret(t *testing.T, name string, data map[string]string) {
	t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: shootNamespace, Name: "ref-" + name}, Immutable: new(true), Data: map[string][]byte{}}
	for key, value := range data {
		secret.Data[key] = []byte(value)
	}
	if err := s.seed.Create(t.Context(), secret); err != nil {
		t.Error(err)
	}
}

func (s *testShoot) makeMutable(t *testing.T, name string) {
	t.Helper()
	secret := &corev1.Secret{}
	if err := s.seed.Get(t.Context(), client.ObjectKey{Namespace: shootNamespace, Name: "ref-" + name}, secret); err != nil {
		t.Fatal(err)
	}
	secret.Immutable = nil
	if err := s.seed.Update(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
}

// configSecret is what the pods of a cache have as files.
func (s *testShoot) configSecret(t *testing.T, cache string) map[string]string {
	t.Helper()
	secret := &corev1.Secret{}
	if err := s.shoot.Get(t.Context(), client.ObjectKey{Namespace: "kube-system", Name: cache + "-config"}, secret); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for key, value := range secret.Data {
		files[key] = string(value)
	}
	return files
}

func (s *testShoot) podTemplate(t *testing.T, cache string) corev1.PodTemplateSpec {
	t.Helper()
	set := &appsv1.StatefulSet{}
	if err := s.shoot.Get(t.Context(), client.ObjectKey{Namespace: "kube-system", Name: cache}, set); err != nil {
		t.Fatal(err)
	}
	return set.Spec.Template
}

func withoutConfig(files map[string]string) map[string]string {
	rest := map[string]string{}
	for name, content := range files {
		if name != "config.yaml" {
			rest[name] = content
		}
	}
	return rest
}

// certificate is a certificate in PEM; each is another one.
func certificate(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
