// SPDX-License-Identifier: Apache-2.0

// Package extension deploys the registry caches of a Shoot: the actuator behind Extension resources of type
// registry-cache.
//
// What the caches need in the Shoot is written into ManagedResources in the Shoot's namespace of the Seed, and applied
// by the Shoot's resource manager. Each Service has a ManagedResource of its own, because the resource manager brings an
// object that was deleted in the Shoot back at once only if everything beside it in its ManagedResource is healthy.
package extension

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	extensionscontroller "github.com/gardener/gardener/extensions/pkg/controller"
	v1beta1helper "github.com/gardener/gardener/pkg/api/core/v1beta1/helper"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/extension/desired"
)

const (
	// Type is the type of the Extension resources that the actuator is responsible for.
	Type = registry.ExtensionType

	pollInterval = 500 * time.Millisecond
	// waitTimeout bounds each wait. The context of a reconciliation, 3 minutes, bounds them together.
	waitTimeout = 2 * time.Minute
	// withdrawAfter is how long a Service outlives its endpoints. Connections to it are refused at once meanwhile, and
	// nodes that probe every 2 seconds with a limit of 1 second stop to use it. Without the Service their packets would
	// vanish, and pulls would wait for a timeout.
	withdrawAfter = 5 * time.Second
	// addressTaken is how the API server refuses a Service whose clusterIP another one has (ErrAllocated in
	// k8s.io/kubernetes/pkg/registry/core/service/ipallocator). The resource manager passes it on.
	addressTaken = "provided IP is already allocated"
)

// ShootClient makes a client for the Shoot whose namespace in the Seed is given.
type ShootClient func(ctx context.Context, namespace string) (client.Client, error)

// Actuator deploys and removes the caches of one Shoot at a time. It is safe for concurrent use for different Shoots.
type Actuator struct {
	seed     client.Client
	forShoot ShootClient
	options  desired.Options

	pollInterval, waitTimeout, withdrawAfter time.Duration
	// clock decides which certificates have to be renewed.
	clock clock.Clock
}

// NewActuator returns an Actuator. seed must read ManagedResources and Secrets from the API server and not from a cache:
// the actuator waits for the effects of its own writes.
func NewActuator(seed client.Client, forShoot ShootClient, options desired.Options) *Actuator {
	return &Actuator{
		seed: seed, forShoot: forShoot, options: options,
		pollInterval: pollInterval, waitTimeout: waitTimeout, withdrawAfter: withdrawAfter,
		clock: clock.RealClock{},
	}
}

// Reconcile deploys what the Extension's provider config asks for, publishes the addresses of the caches in its provider
// status, and removes the caches that are no longer asked for. It does not wait for the caches to be ready.
//
// A bad config, or a bad Secret that it refers to, is a configuration problem for Gardener; it changes nothing, so the
// caches that run keep running. In a hibernated Shoot nothing can be changed, and nothing is.
func (a *Actuator) Reconcile(ctx context.Context, log logr.Logger, ex *extensionsv1alpha1.Extension) (err error) {
	cluster, err := extensionscontroller.GetCluster(ctx, a.seed, ex.Namespace)
	if err != nil {
		return fmt.Errorf("reading Cluster %s: %w", ex.Namespace, err)
	}
	if cluster.Shoot == nil {
		return fmt.Errorf("reading Cluster %s: it holds no Shoot", ex.Namespace)
	}
	if extensionscontroller.IsHibernationEnabled(cluster) {
		log.Info("Shoot is hibernated, caches stay as they are")
		return nil
	}

	config, err := decodeConfig(ex)
	if err != nil {
		return err
	}
	secrets, err := a.referencedSecrets(ctx, ex.Namespace, cluster.Shoot, config)
	if err != nil {
		return err
	}
	shoot, err := a.forShoot(ctx, ex.Namespace)
	if err != nil {
		return fmt.Errorf("connecting to the Shoot of %s: %w", ex.Namespace, err)
	}

	addresses, err := a.deployServices(ctx, log, shoot, ex, config)
	if err != nil {
		return err
	}
	certificates, err := a.issueCertificates(ctx, log, cluster, config, addresses)
	if err != nil {
		return err
	}
	volumes, volumesErr := growVolumes(ctx, log, shoot, config, publishedCaches(log, ex))
	defer func() { err = errors.Join(err, volumesErr) }()
	if err := a.deployWorkloads(ctx, ex.Namespace, cluster.Shoot, config, certificates.addTo(secrets), volumes); err != nil {
		return err
	}
	// Nodes must hear of a removed cache even if its removal takes long.
	if err := a.updateStatus(ctx, log, shoot, ex, config, addresses, volumes, certificates.caSecretName); err != nil {
		return err
	}
	if err := a.replaceStatefulSets(ctx, log, shoot, ex.Namespace, config); err != nil {
		return err
	}
	if err := a.removeServices(ctx, log, ex.Namespace, config); err != nil {
		return err
	}
	if err := a.deployMonitoring(ctx, log, ex.Namespace, cluster.Shoot, config); err != nil {
		return err
	}
	return certificates.cleanup(ctx)
}

// Restore deploys the caches after the Shoot's control plane has moved to this Seed. Their objects in the Shoot are
// there already and are taken over, with their addresses.
func (a *Actuator) Restore(ctx context.Context, log logr.Logger, ex *extensionsv1alpha1.Extension) error {
	return a.Reconcile(ctx, log, ex)
}

// Delete removes all caches and waits until they are gone: first what serves, then, when nodes have had the time to
// notice, the Services.
//
// In a Shoot that is hibernated, and not deleted, it waits for nothing: there are no nodes, and the resource manager
// comes back when the Shoot wakes up, which may be in weeks. gardenlet does not wait either. A Shoot that is deleted was
// woken up before.
func (a *Actuator) Delete(ctx context.Context, log logr.Logger, ex *extensionsv1alpha1.Extension) error {
	if err := a.deleteMonitoring(ctx, ex.Namespace); err != nil {
		return err
	}
	workloads, services, err := a.managedResources(ctx, ex.Namespace)
	if err != nil {
		return err
	}
	if asleep, err := a.isAsleep(ctx, ex.Namespace); err != nil {
		return err
	} else if asleep {
		log.Info("Shoot is hibernated, the caches go when it wakes up")
		if err := a.delete(ctx, ex.Namespace, append(workloads, services...)); err != nil {
			return err
		}
		return a.deleteCertificates(ctx, log, ex.Namespace)
	}
	if err := a.deleteAndWait(ctx, ex.Namespace, workloads); err != nil {
		return err
	}
	if len(services) > 0 {
		log.Info("Waiting for nodes to stop using the caches", "duration", a.withdrawAfter)
		if err := pause(ctx, a.withdrawAfter); err != nil {
			return err
		}
		if err := a.deleteAndWait(ctx, ex.Namespace, services); err != nil {
			return err
		}
	}
	return a.deleteCertificates(ctx, log, ex.Namespace)
}

// isAsleep tells whether the Shoot in namespace is hibernated and is to stay. Without its Cluster it is taken for running.
func (a *Actuator) isAsleep(ctx context.Context, namespace string) (bool, error) {
	cluster, err := extensionscontroller.GetCluster(ctx, a.seed, namespace)
	if apierrors.IsNotFound(err) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("reading Cluster %s: %w", namespace, err)
	}
	return cluster.Shoot != nil && cluster.Shoot.DeletionTimestamp == nil && extensionscontroller.IsHibernationEnabled(cluster), nil
}

// ForceDelete asks for the removal of all caches and waits for nothing: the Shoot's API server may be gone for good.
func (a *Actuator) ForceDelete(ctx context.Context, log logr.Logger, ex *extensionsv1alpha1.Extension) error {
	if err := a.deleteMonitoring(ctx, ex.Namespace); err != nil {
		return err
	}
	workloads, services, err := a.managedResources(ctx, ex.Namespace)
	if err != nil {
		return err
	}
	if err := a.delete(ctx, ex.Namespace, append(workloads, services...)); err != nil {
		return err
	}
	return a.deleteCertificates(ctx, log, ex.Namespace)
}

// Migrate lets go of the caches without touching them in the Shoot: another Seed takes over. The CA stays where it is:
// gardenlet takes it to the other Seed, and it goes with the namespace.
func (a *Actuator) Migrate(ctx context.Context, _ logr.Logger, ex *extensionsv1alpha1.Extension) error {
	if err := a.deleteMonitoring(ctx, ex.Namespace); err != nil {
		return err
	}
	workloads, services, err := a.managedResources(ctx, ex.Namespace)
	if err != nil {
		return err
	}
	all := append(workloads, services...)
	if err := a.keepObjects(ctx, ex.Namespace, all); err != nil {
		return err
	}
	return a.deleteAndWait(ctx, ex.Namespace, all)
}

func decodeConfig(ex *extensionsv1alpha1.Extension) (*v1alpha3.RegistryConfig, error) {
	var raw []byte
	if ex.Spec.ProviderConfig != nil {
		raw = ex.Spec.ProviderConfig.Raw
	}
	config, errs := registry.Decode(raw, field.NewPath("providerConfig"))
	if len(errs) > 0 {
		return nil, v1beta1helper.NewErrorWithCodes(errs.ToAggregate(), gardencorev1beta1.ErrorConfigurationProblem)
	}
	return config, nil
}

// deployServices deploys the Services of all caches and returns their addresses by upstream, as soon as all have one.
func (a *Actuator) deployServices(ctx context.Context, log logr.Logger, shoot client.Client, ex *extensionsv1alpha1.Extension, config *v1alpha3.RegistryConfig) (map[string]string, error) {
	published := map[string]string{}
	for _, cache := range publishedCaches(log, ex) {
		published[cache.ObjectName()] = cache.ClusterIP
	}
	pins := map[string]string{}
	for _, cache := range config.Caches {
		pin, err := serviceAddress(ctx, shoot, cache)
		if err != nil {
			return nil, err
		}
		if pin == "" {
			// The Service may have been deleted a moment ago: it comes back with the address that nodes know.
			pin = published[cache.ObjectName()]
		}
		pins[cache.Upstream] = pin
		if err := a.deployService(ctx, ex.Namespace, cache, pin); err != nil {
			return nil, err
		}
	}

	addresses := map[string]string{}
	for _, cache := range config.Caches {
		address, pinned, err := a.waitForAddress(ctx, log, shoot, ex.Namespace, cache, pins[cache.Upstream])
		if err != nil {
			return nil, err
		}
		// A new Service: the address that the API server chose is pinned before anybody can delete the Service.
		if address != pinned {
			if err := a.deployService(ctx, ex.Namespace, cache, address); err != nil {
				return nil, err
			}
		}
		addresses[cache.Upstream] = address
	}
	return addresses, nil
}

// waitForAddress waits until the Service of cache has an address. A pin that somebody else has taken meanwhile is let
// go, because the Service would never come back with it. pinned is the pin that is left.
func (a *Actuator) waitForAddress(ctx context.Context, log logr.Logger, shoot client.Client, namespace string, cache v1alpha3.RegistryCache, pin string) (address, pinned string, err error) {
	pinned = pin
	err = a.wait(ctx, fmt.Sprintf("the Service of the cache of %s to get an address", cache.Upstream), func(ctx context.Context) (reason string, err error) {
		if address, err = serviceAddress(ctx, shoot, cache); err != nil || address != "" {
			return "", err
		}
		if err := a.removeHeadlessService(ctx, log, shoot, namespace, cache); err != nil {
			return "", err
		}
		if reason, err = a.describe(ctx, namespace, serviceResourceName(cache)); err != nil {
			return "", err
		}
		if pinned != "" && strings.Contains(reason, addressTaken) {
			log.Info("The address of a cache belongs to another Service now, the cache gets a new one", "upstream", cache.Upstream, "address", pinned)
			pinned = ""
			err = a.deployService(ctx, namespace, cache, "")
		}
		return reason, err
	})
	return address, pinned, err
}

// removeServices removes the Services of the caches that config does not name. Their workloads are gone or going.
func (a *Actuator) removeServices(ctx context.Context, log logr.Logger, namespace string, config *v1alpha3.RegistryConfig) error {
	_, services, err := a.managedResources(ctx, namespace)
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, cache := range config.Caches {
		wanted[serviceResourceName(cache)] = true
	}
	var obsolete []string
	for _, name := range services {
		if !wanted[name] {
			obsolete = append(obsolete, name)
		}
	}
	if len(obsolete) == 0 {
		return nil
	}
	if err := a.waitUntilApplied(ctx, namespace, workloadsResourceName); err != nil {
		return err
	}
	log.Info("Waiting for nodes to stop using the removed caches", "duration", a.withdrawAfter)
	if err := pause(ctx, a.withdrawAfter); err != nil {
		return err
	}
	return a.deleteAndWait(ctx, namespace, obsolete)
}

// serviceAddress is the address of the Service of cache, "" if there is none or it is about to go.
func serviceAddress(ctx context.Context, shoot client.Client, cache v1alpha3.RegistryCache) (string, error) {
	service := &corev1.Service{}
	key := client.ObjectKeyFromObject(desired.Service(cache, ""))
	if err := shoot.Get(ctx, key, service); apierrors.IsNotFound(err) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("reading Service %s of the Shoot: %w", key, err)
	}
	// "None" is no address either: somebody has replaced the Service by one of his own.
	if _, err := netip.ParseAddr(service.Spec.ClusterIP); err != nil || service.DeletionTimestamp != nil {
		return "", nil //nolint:nilerr // a Service without an address is a valid state
	}
	return service.Spec.ClusterIP, nil
}

// wait calls check until it gives no reason to wait any longer, or an error. The last reason is part of the error after
// a timeout.
func (a *Actuator) wait(ctx context.Context, what string, check func(ctx context.Context) (reason string, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, a.waitTimeout)
	defer cancel()
	ticker := time.NewTicker(a.pollInterval)
	defer ticker.Stop()
	last := "nothing is known yet"
	for {
		reason, err := check(ctx)
		switch {
		case err != nil && errors.Is(err, ctx.Err()):
			return fmt.Errorf("waiting for %s: %w; %s", what, err, last)
		case err != nil:
			return fmt.Errorf("waiting for %s: %w", what, err)
		case reason == "":
			return nil
		}
		last = reason
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w; %s", what, ctx.Err(), last)
		case <-ticker.C:
		}
	}
}

func pause(ctx context.Context, duration time.Duration) error {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
