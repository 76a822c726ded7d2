// SPDX-License-Identifier: Apache-2.0

package nodeconfig

import (
	"context"
	"errors"
	"fmt"
	"slices"

	extensionscontroller "github.com/gardener/gardener/extensions/pkg/controller"
	extensionswebhook "github.com/gardener/gardener/extensions/pkg/webhook"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	secretsutils "github.com/gardener/gardener/pkg/utils/secrets"
	"github.com/go-logr/logr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/registry-cache/extension/pkg/apis/registry"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

const (
	// extensionName is the name of the Extension: gardenlet names Extensions of a Shoot like their type.
	extensionName = registry.ExtensionType

	webhookName = "node-configuration"
	webhookPath = "/webhooks/node-configuration"
)

// errNoStatus is the state between the creation of an Extension and its first reconciliation.
var errNoStatus = errors.New("it has no providerStatus yet")

// NewWebhook returns the mutating webhook that adds the node configuration to the OperatingSystemConfigs of all Shoots
// with caches. The scheme of mgr must know extensions.gardener.cloud/v1alpha1 and v1, and mgr be allowed to get Extensions,
// Clusters and Secrets.
//
// The webhook fails open, against the default of the library for the Seed. With "Fail", a controller that is down for an
// hour would stop the reconciliation of each Shoot with a cache for that hour. With "Ignore", the worst is that nodes of
// a Shoot reconciled in that hour pull from the upstreams until its next reconciliation.
func NewWebhook(mgr manager.Manager) (*extensionswebhook.Webhook, error) {
	webhook, err := extensionswebhook.New(mgr, extensionswebhook.Args{
		Name:              webhookName,
		Path:              webhookPath,
		Target:            extensionswebhook.TargetSeed,
		NamespaceSelector: extensionswebhook.BuildExtensionTypeNamespaceSelector(registry.ExtensionType, nil),
		Mutators: map[extensionswebhook.Mutator][]extensionswebhook.Type{
			&mutator{client: mgr.GetAPIReader()}: {{Obj: &extensionsv1alpha1.OperatingSystemConfig{}}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("creating webhook %s: %w", webhookName, err)
	}
	webhook.FailurePolicy = new(admissionregistrationv1.Ignore)
	return webhook, nil
}

// mutator is an extensionswebhook.Mutator of its own instead of an Ensurer behind the library's generic one: that one
// asks for files and units one after the other, without the OperatingSystemConfig, so that the two could come from
// different states of the Extension, and the registries of others could not be seen.
type mutator struct {
	// client does not read from a cache. gardenlet writes the OperatingSystemConfig as soon as it sees the Extension
	// succeed, and a status that is some milliseconds old would stay on the nodes until the next reconciliation.
	client client.Reader
}

// Mutate returns an error only for objects which are no OperatingSystemConfig. Any error refuses the object, whatever
// the failure policy is, and a cache is never worth a Shoot that cannot be reconciled.
func (m *mutator) Mutate(ctx context.Context, newObj, oldObj client.Object) error {
	osc, ok := newObj.(*extensionsv1alpha1.OperatingSystemConfig)
	if !ok {
		return fmt.Errorf("mutating %T: not an OperatingSystemConfig", newObj)
	}
	if osc.DeletionTimestamp != nil || osc.Spec.Purpose != extensionsv1alpha1.OperatingSystemConfigPurposeReconcile || !hasContainerd(osc) {
		return nil
	}
	logger := log.FromContext(ctx).WithValues("operatingSystemConfig", client.ObjectKeyFromObject(osc))

	if idle, err := m.isIdle(ctx, osc.Namespace); err != nil {
		// Without the Cluster the Extension still says all that nodes need.
		logger.Error(err, "Could not tell whether the Shoot is deleted or hibernated, it is taken for running")
	} else if idle {
		return nil
	}

	var previous Config
	if old, ok := oldObj.(*extensionsv1alpha1.OperatingSystemConfig); ok {
		previous = Config{Files: filter(old.Spec.Files, owns), Units: filter(old.Spec.Units, ownsUnit)}
	}
	config, err := m.config(ctx, logger, osc, previous)
	if err != nil {
		if errors.Is(err, errNoStatus) {
			logger.Info("Kept the node configuration as it was", "reason", err.Error())
		} else {
			logger.Error(err, "Kept the node configuration as it was")
		}
		config = previous
	}
	osc.Spec.Files = replace(osc.Spec.Files, config.Files, owns)
	osc.Spec.Units = replace(osc.Spec.Units, config.Units, ownsUnit)
	return nil
}

// isIdle tells whether the Shoot in namespace has no nodes, or none for long.
func (m *mutator) isIdle(ctx context.Context, namespace string) (bool, error) {
	cluster, err := extensionscontroller.GetCluster(ctx, m.client, namespace)
	if err != nil {
		return false, fmt.Errorf("reading Cluster %s: %w", namespace, err)
	}
	if cluster.Shoot == nil {
		return false, fmt.Errorf("reading Cluster %s: it has no Shoot", namespace)
	}
	return cluster.Shoot.DeletionTimestamp != nil || extensionscontroller.IsHibernationEnabled(cluster), nil
}

// config returns the node configuration for osc. It is empty if the Extension does not exist or is being deleted.
//
// An invalid cache is logged and left out. While the roots are missing or invalid, caches with https keep their files of
// previous, the configuration before; new ones are left out. Neither affects the other caches.
func (m *mutator) config(ctx context.Context, logger logr.Logger, osc *extensionsv1alpha1.OperatingSystemConfig, previous Config) (Config, error) {
	key := client.ObjectKey{Namespace: osc.Namespace, Name: extensionName}
	extension := &extensionsv1alpha1.Extension{}
	if err := m.client.Get(ctx, key, extension); apierrors.IsNotFound(err) {
		return Config{}, nil
	} else if err != nil {
		return Config{}, fmt.Errorf("reading Extension %s: %w", key, err)
	}
	if extension.DeletionTimestamp != nil {
		return Config{}, nil
	}
	raw := extension.Status.ProviderStatus
	if raw == nil || len(raw.Raw) == 0 {
		return Config{}, fmt.Errorf("reading Extension %s: %w", key, errNoStatus)
	}
	status, err := registry.DecodeStatus(raw.Raw)
	if err != nil {
		return Config{}, fmt.Errorf("reading Extension %s: %w", key, err)
	}
	// gardener-node-agent would write the hosts.toml of the others over ours.
	caches := slices.DeleteFunc(slices.Clone(status.Caches), func(cache v1alpha3.RegistryCacheStatus) bool {
		if !configuredByOthers(osc, cache.Upstream) {
			return false
		}
		logger.Info("Left an upstream to criConfig.containerd.registries, its cache is not used", "upstream", cache.Upstream)
		return true
	})
	var bundle string
	var withoutRoots []string
	if slices.ContainsFunc(caches, secure) {
		if bundle, err = m.caBundle(ctx, osc.Namespace, status.CASecretName); err != nil {
			caches = slices.DeleteFunc(caches, func(cache v1alpha3.RegistryCacheStatus) bool {
				if !secure(cache) {
					return false
				}
				logger.Error(err, "The node configuration of a cache with https stays as it was", "upstream", cache.Upstream)
				withoutRoots = append(withoutRoots, cache.Upstream)
				return true
			})
		}
	}
	config, skipped := New(caches, bundle)
	for _, skip := range skipped {
		logger.Error(skip.Reason, "Left an invalid cache out of the node configuration, nodes pull its upstream directly", "upstream", skip.Upstream)
	}
	return config.withPrevious(previous, withoutRoots), nil
}

// caBundle reads the roots of the caches from the Secret that the status of the Extension names, and checks them.
func (m *mutator) caBundle(ctx context.Context, namespace string, name *string) (string, error) {
	if name == nil {
		return "", fmt.Errorf("reading Extension %s/%s: it has caches with https and no caSecretName", namespace, extensionName)
	}
	key := client.ObjectKey{Namespace: namespace, Name: *name}
	secret := &corev1.Secret{}
	if err := m.client.Get(ctx, key, secret); err != nil {
		return "", fmt.Errorf("reading Secret %s: %w", key, err)
	}
	bundle := string(secret.Data[secretsutils.DataKeyCertificateBundle])
	if err := checkBundle(bundle); err != nil {
		return "", fmt.Errorf("reading Secret %s: %s: %w", key, secretsutils.DataKeyCertificateBundle, err)
	}
	return bundle, nil
}

// hasContainerd is true if the OperatingSystemConfig does not say what runs the containers.
func hasContainerd(osc *extensionsv1alpha1.OperatingSystemConfig) bool {
	cri := osc.Spec.CRIConfig
	return cri == nil || cri.Name == "" || cri.Name == extensionsv1alpha1.CRINameContainerD
}

func configuredByOthers(osc *extensionsv1alpha1.OperatingSystemConfig, upstream string) bool {
	cri := osc.Spec.CRIConfig
	return cri != nil && cri.Containerd != nil && slices.ContainsFunc(cri.Containerd.Registries, func(other extensionsv1alpha1.RegistryConfig) bool {
		return other.Upstream == upstream
	})
}

// replace returns all with want in place of the elements which are ours. If these are equal to want already nothing
// moves: the order counts for the checksum by which nodes notice a change.
func replace[T any](all, want []T, ours func(T) bool) []T {
	if apiequality.Semantic.DeepEqual(filter(all, ours), want) {
		return all
	}
	return append(slices.DeleteFunc(slices.Clone(all), ours), want...)
}

func filter[T any](all []T, keep func(T) bool) []T {
	var kept []T
	for _, element := range all {
		if keep(element) {
			kept = append(kept, element)
		}
	}
	return kept
}
