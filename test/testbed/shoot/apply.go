// SPDX-License-Identifier: Apache-2.0

package shoot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/gardenlet"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// Result is the state of a reconciled Shoot.
type Result struct {
	// Namespace is the Shoot's namespace in the seed, "shoot--<project>--<name>".
	Namespace string
	// Status is the provider status of the extension registry-cache, nil if the Shoot does not use the extension.
	Status *v1alpha3.RegistryStatus
}

// Apply creates or updates the Shoot of the manifest and waits until the gardenlet has reconciled it: the extensions are
// ready and every node has applied its configuration. Fields that depend on the testbed have defaults. A second call with
// the same manifest starts another reconciliation.
//
// If Gardener's API server rejects the Shoot, apierrors.IsForbidden or apierrors.IsInvalid hold for the error. Errors of the
// gardenlet and the extensions are the error of a failed operation. Both contain the path of the invalid field.
//
// A testbed cluster has at most one Shoot. Extensions that a manifest no longer lists are deleted.
func Apply(ctx context.Context, cluster *kindcluster.Cluster, progress *workspace.Progress, manifest []byte) (*Result, error) {
	shoot, err := Parse(manifest)
	if err != nil {
		return nil, err
	}
	nodes, err := cluster.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	complete(shoot, int32(len(nodes)))
	c, err := connect(cluster)
	if err != nil {
		return nil, err
	}
	result, err := newGarden(c, progress).apply(ctx, shoot)
	if failure, ok := errors.AsType[*operationError](err); ok && failure.at(gardenlet.WaitForNodes) {
		return nil, errors.Join(err, journals(ctx, nodes))
	}
	return result, err
}

// Delete confirms and deletes the Shoot of the manifest: its extensions, their configuration of the nodes, and its
// namespace. It waits while the gardenlet retries a failed deletion. A missing Shoot is no error.
func Delete(ctx context.Context, cluster *kindcluster.Cluster, progress *workspace.Progress, manifest []byte) error {
	shoot, err := Parse(manifest)
	if err != nil {
		return err
	}
	c, err := connect(cluster)
	if err != nil {
		return err
	}
	return newGarden(c, progress).delete(ctx, client.ObjectKeyFromObject(shoot))
}

func connect(cluster *kindcluster.Cluster) (client.Client, error) {
	config, err := cluster.RESTConfig()
	if err != nil {
		return nil, err
	}
	c, err := client.New(config, client.Options{Scheme: gardenlet.Scheme()})
	if err != nil {
		return nil, fmt.Errorf("connecting to cluster %s: %w", cluster.Name(), err)
	}
	return c, nil
}

// garden is Gardener's API as the owner of a Shoot sees it, and the seed behind it.
type garden struct {
	client   client.Client
	progress *workspace.Progress
	// interval is how often a Shoot is looked at.
	interval time.Duration
}

func newGarden(c client.Client, progress *workspace.Progress) *garden {
	return &garden{client: c, progress: progress, interval: 250 * time.Millisecond}
}

func (g *garden) apply(ctx context.Context, wanted *gardencorev1beta1.Shoot) (*Result, error) {
	var written *gardencorev1beta1.Shoot
	err := g.repeat(ctx, func(ctx context.Context) (err error) {
		written, err = g.write(ctx, wanted)
		return err
	})
	if err != nil {
		return nil, err
	}
	reconciled, err := g.waitForOperation(ctx, written)
	if err != nil {
		return nil, err
	}
	result := &Result{Namespace: reconciled.Status.TechnicalID}
	result.Status, err = g.registryStatus(ctx, reconciled)
	return result, err
}

// write creates the Shoot, or replaces its spec and orders an operation.
func (g *garden) write(ctx context.Context, wanted *gardencorev1beta1.Shoot) (*gardencorev1beta1.Shoot, error) {
	key := client.ObjectKeyFromObject(wanted)
	shoot := &gardencorev1beta1.Shoot{}
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		shoot = &gardencorev1beta1.Shoot{}
		if err := g.client.Get(ctx, key, shoot); apierrors.IsNotFound(err) {
			shoot = wanted.DeepCopy()
			return g.client.Create(ctx, shoot)
		} else if err != nil {
			return err
		}
		if shoot.DeletionTimestamp != nil {
			return errors.New("it is being deleted: delete it to the end first")
		}
		if shoot.Labels == nil {
			shoot.Labels = map[string]string{}
		}
		maps.Copy(shoot.Labels, wanted.Labels)
		maps.Copy(metaAnnotations(shoot), wanted.Annotations)
		shoot.Spec = wanted.DeepCopy().Spec
		before := shoot.Generation
		if err := g.client.Update(ctx, shoot); err != nil || shoot.Generation != before {
			return err
		}
		// Nothing has changed. With a change, the API server would keep the order for the next time.
		patch := client.MergeFrom(shoot.DeepCopy())
		order(shoot)
		return g.client.Patch(ctx, shoot, patch)
	})
	if err != nil {
		return nil, fmt.Errorf("applying Shoot %s: %w", key, err)
	}
	return shoot, nil
}

func metaAnnotations(shoot *gardencorev1beta1.Shoot) map[string]string {
	if shoot.Annotations == nil {
		shoot.Annotations = map[string]string{}
	}
	return shoot.Annotations
}

// order requests an operation without a change of the spec. Without a last operation, the first one is still pending.
func order(shoot *gardencorev1beta1.Shoot) {
	last := shoot.Status.LastOperation
	switch {
	case last == nil:
	case last.State == gardencorev1beta1.LastOperationStateFailed:
		metav1.SetMetaDataAnnotation(&shoot.ObjectMeta, v1beta1constants.GardenerOperation, v1beta1constants.ShootOperationRetry)
	default:
		metav1.SetMetaDataAnnotation(&shoot.ObjectMeta, v1beta1constants.GardenerOperation, v1beta1constants.GardenerOperationReconcile)
	}
}

func (g *garden) delete(ctx context.Context, key client.ObjectKey) error {
	var deleted *gardencorev1beta1.Shoot
	err := g.repeat(ctx, func(ctx context.Context) (err error) {
		deleted, err = g.requestDeletion(ctx, key)
		return err
	})
	if err != nil {
		return err
	}
	if deleted == nil {
		g.progress.Printf("Shoot %s: there is nothing to delete", key)
		return nil
	}
	return g.waitForDeletion(ctx, deleted)
}

// requestDeletion confirms and requests the deletion of a Shoot. It returns nil if the Shoot does not exist.
func (g *garden) requestDeletion(ctx context.Context, key client.ObjectKey) (*gardencorev1beta1.Shoot, error) {
	shoot := &gardencorev1beta1.Shoot{}
	if err := g.client.Get(ctx, key, shoot); apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading Shoot %s: %w", key, err)
	}
	patch := client.MergeFrom(shoot.DeepCopy())
	metav1.SetMetaDataAnnotation(&shoot.ObjectMeta, v1beta1constants.ConfirmationDeletion, "true")
	if shoot.DeletionTimestamp != nil {
		order(shoot) // an earlier deletion may have failed
	}
	if err := g.client.Patch(ctx, shoot, patch); client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("confirming the deletion of Shoot %s: %w", key, err)
	}
	if err := g.client.Delete(ctx, shoot); client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("deleting Shoot %s: %w", key, err)
	}
	return shoot, nil
}
