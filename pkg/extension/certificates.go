// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	extensionscontroller "github.com/gardener/gardener/extensions/pkg/controller"
	extensionssecretsmanager "github.com/gardener/gardener/extensions/pkg/util/secret/manager"
	v1beta1helper "github.com/gardener/gardener/pkg/api/core/v1beta1/helper"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	secretsutils "github.com/gardener/gardener/pkg/utils/secrets"
	secretsmanager "github.com/gardener/gardener/pkg/utils/secrets/manager"
	"github.com/go-logr/logr"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/extension/desired"
)

const (
	// caName is the name of the CA that signs the certificates of a Shoot's caches.
	caName = "ca-extension-registry-cache"
	// managerIdentity tells the Secrets of our secrets manager from those of others in the namespace of the Shoot.
	managerIdentity = "extension-registry-cache"
	// certificateValidity is how long the certificate of a cache is valid. The secrets manager renews it in the first
	// reconciliation after 80 % of it; Gardener reconciles a Shoot every day.
	certificateValidity = 90 * 24 * time.Hour
)

// rotating are the phases of the rotation of a Shoot's CAs in which the old CA is needed. The nodes get both CAs in the
// first of them, and have them when Gardener sets RotationPrepared.
var rotating = []gardencorev1beta1.CredentialsRotationPhase{
	gardencorev1beta1.RotationPreparing,
	gardencorev1beta1.RotationPreparingWithoutWorkersRollout,
	gardencorev1beta1.RotationWaitingForWorkersRollout,
	gardencorev1beta1.RotationPrepared,
}

// certificates are what the caches of one Shoot need to be served by https.
type certificates struct {
	// caSecretName is the Secret in the namespace of the Extension with the roots, nil if no cache is served by https.
	caSecretName *string
	// servers are the certificates of those caches that are, by upstream.
	servers map[string]*desired.Certificate
	cleanup func(context.Context) error
}

// issueCertificates makes the CA and the certificates of the caches of config with https, whose addresses are given by
// upstream, or reads those that are still good. Which they are is known to Gardener's secrets manager: a certificate is
// replaced when it is about to expire, when the cache has another address, and when another CA is to sign it.
//
// That is the old CA until the rotation of the Shoot's CAs is being completed, and the new one from then on. So a node
// that has not heard of the new one yet trusts every cache while it is being told, and one that has forgotten the old one
// trusts every cache that has its new certificate; for the others see the retention in the script of package nodeconfig.
//
// cleanup of the result deletes what is not needed any more. It must not be called before nodes can have the roots of the
// result, that is before they are in the status.
func (a *Actuator) issueCertificates(ctx context.Context, log logr.Logger, cluster *extensionscontroller.Cluster, config *v1alpha3.RegistryConfig, addresses map[string]string) (*certificates, error) {
	ca := extensionssecretsmanager.SecretConfigWithOptions{
		Config: &secretsutils.CertificateSecretConfig{Name: caName, CommonName: caName, CertType: secretsutils.CACert},
		// gardenlet takes it along when the control plane of the Shoot moves to another Seed.
		Options: []secretsmanager.GenerateOption{secretsmanager.Persist()},
	}
	if !slices.Contains(rotating, v1beta1helper.GetShootCARotationPhase(cluster.Shoot.Status.Credentials)) {
		// The library does so only while a rotation is being completed. A Shoot that was hibernated meanwhile would keep
		// its old CA, and sign with it, until the next rotation.
		ca.Options = append(ca.Options, secretsmanager.IgnoreOldSecrets())
	}
	configs := []extensionssecretsmanager.SecretConfigWithOptions{ca}
	names := map[string]string{}
	for _, cache := range config.Caches {
		if !desired.TLS(cache) {
			continue
		}
		dnsNames, ips, err := desired.ServerNames(cache, addresses[cache.Upstream])
		if err != nil {
			return nil, err
		}
		name := cache.ObjectName() + "-tls"
		names[cache.Upstream] = name
		configs = append(configs, extensionssecretsmanager.SecretConfigWithOptions{
			Config: &secretsutils.CertificateSecretConfig{
				Name:                        name,
				CommonName:                  cache.ObjectName(),
				DNSNames:                    dnsNames,
				IPAddresses:                 ips,
				CertType:                    secretsutils.ServerCert,
				Validity:                    new(certificateValidity),
				SkipPublishingCACertificate: true,
			},
			Options: []secretsmanager.GenerateOption{
				secretsmanager.SignedByCA(caName),
				secretsmanager.Rotate(secretsmanager.InPlace),
			},
		})
	}

	manager, err := extensionssecretsmanager.SecretsManagerForCluster(ctx, log, a.clock, a.seed, cluster, managerIdentity, configs)
	if err != nil {
		return nil, fmt.Errorf("reading the certificates of the caches: %w", err)
	}
	result := &certificates{servers: map[string]*desired.Certificate{}, cleanup: func(ctx context.Context) error {
		if err := manager.Cleanup(ctx); err != nil {
			return fmt.Errorf("deleting certificates that are not needed any more: %w", err)
		}
		return nil
	}}
	if len(names) == 0 {
		return result, nil
	}
	generated, err := extensionssecretsmanager.GenerateAllSecrets(ctx, manager, configs)
	if err != nil {
		return nil, fmt.Errorf("making the certificates of the caches: %w", err)
	}
	for upstream, name := range names {
		data := generated[name].Data
		result.servers[upstream] = &desired.Certificate{
			Certificate: data[secretsutils.DataKeyCertificate],
			Key:         data[secretsutils.DataKeyPrivateKey],
		}
	}
	bundle, found := manager.Get(caName, secretsmanager.Bundle)
	if !found {
		return nil, fmt.Errorf("making the certificates of the caches: the secrets manager has no bundle of %s", caName)
	}
	result.caSecretName = &bundle.Name
	return result, nil
}

// addTo returns secrets with the certificates in them.
func (c *certificates) addTo(secrets map[string]desired.Secrets) map[string]desired.Secrets {
	all := maps.Collect(maps.All(secrets))
	for upstream, certificate := range c.servers {
		secret := all[upstream]
		secret.Certificate = certificate
		all[upstream] = secret
	}
	return all
}

// deleteCertificates deletes the CA and all certificates.
func (a *Actuator) deleteCertificates(ctx context.Context, log logr.Logger, namespace string) error {
	manager, err := secretsmanager.New(ctx, log, a.clock, a.seed, managerIdentity,
		secretsmanager.WithNamespaces(namespace), secretsmanager.WithoutAutomaticSecretRenewal())
	if err != nil {
		return fmt.Errorf("deleting the certificates of the caches: %w", err)
	}
	if err := manager.Cleanup(ctx); err != nil {
		return fmt.Errorf("deleting the certificates of the caches: %w", err)
	}
	return nil
}
