// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	nodeagentconfigv1alpha1 "github.com/gardener/gardener/pkg/apis/config/nodeagent/v1alpha1"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	"github.com/gardener/gardener/pkg/client/kubernetes"
	"github.com/gardener/gardener/pkg/component/extensions/operatingsystemconfig/original/components/nodeagent"
	"github.com/gardener/gardener/pkg/controllerutils"
	gardenerutils "github.com/gardener/gardener/pkg/utils/gardener"
	"github.com/gardener/gardener/pkg/utils/managedresources"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/poll"
)

// NodeAgentSecretName is the name of the Secret in kube-system from which the agent of every node reads what its node
// has to look like. Gardener has one per worker pool; the nodes of a testbed cluster are one pool.
const NodeAgentSecretName = "gardener-node-agent-testbed"

// nodeAgentResource is the ManagedResource with the Secrets of the node agents.
const nodeAgentResource = "shoot-gardener-node-agent"

func (o *operation) pool() gardencorev1beta1.Worker { return o.shoot.Spec.Provider.Workers[0] }

func (o *operation) operatingSystemConfig() *extensionsv1alpha1.OperatingSystemConfig {
	return &extensionsv1alpha1.OperatingSystemConfig{ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: NodeAgentSecretName + "-original"}}
}

// deployOperatingSystemConfig writes the configuration of the worker pool without any of an extension's files and
// units; those come back from the webhooks. What Gardener itself has in it, kind did: kubelet, containerd, sysctls.
func (o *operation) deployOperatingSystemConfig(ctx context.Context) error {
	pool, osc := o.pool(), o.operatingSystemConfig()
	_, err := controllerutils.GetAndCreateOrMergePatch(ctx, o.client, osc, func() error {
		// No order to reconcile, as there is no extension for an operating system to carry it out. The time stamp makes
		// each run a real update, which the webhooks see.
		metav1.SetMetaDataAnnotation(&osc.ObjectMeta, v1beta1constants.GardenerTimestamp, time.Now().UTC().Format(time.RFC3339Nano))
		metav1.SetMetaDataLabel(&osc.ObjectMeta, v1beta1constants.LabelWorkerPool, pool.Name)
		metav1.SetMetaDataLabel(&osc.ObjectMeta, v1beta1constants.LabelExtensionProviderMutatedByControlplaneWebhook, "true")
		osc.Spec.Type = pool.Machine.Image.Name
		osc.Spec.ProviderConfig = pool.Machine.Image.ProviderConfig
		osc.Spec.Purpose = extensionsv1alpha1.OperatingSystemConfigPurposeReconcile
		osc.Spec.Units, osc.Spec.Files = nil, nil
		osc.Spec.CRIConfig = &extensionsv1alpha1.CRIConfig{
			Name:         extensionsv1alpha1.CRINameContainerD,
			CgroupDriver: new(o.options.Containerd.CgroupDriver),
			Containerd:   &extensionsv1alpha1.ContainerdConfig{SandboxImage: o.options.Containerd.SandboxImage},
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("writing OperatingSystemConfig %s: %w", client.ObjectKeyFromObject(osc), err)
	}
	return nil
}

// deployNodeAgentSecret sends the OperatingSystemConfig to the Shoot by a ManagedResource, and labels the nodes.
func (o *operation) deployNodeAgentSecret(ctx context.Context) error {
	if err := o.labelNodes(ctx); err != nil {
		return err
	}
	secret, err := o.nodeAgentSecret(ctx)
	if err != nil {
		return err
	}
	data, err := managedresources.NewRegistry(kubernetes.ShootScheme, kubernetes.ShootCodec, kubernetes.ShootSerializer).AddAllAndSerialize(secret)
	if err != nil {
		return fmt.Errorf("serializing secret %s: %w", client.ObjectKeyFromObject(secret), err)
	}
	if err := managedresources.CreateForShoot(ctx, o.client, o.namespace, nodeAgentResource, managedresources.LabelValueGardener, false, data); err != nil {
		return fmt.Errorf("writing ManagedResource %s/%s: %w", o.namespace, nodeAgentResource, err)
	}
	ctx, cancel := context.WithTimeout(ctx, managedResourceTimeout)
	defer cancel()
	return managedresources.WaitUntilHealthy(ctx, o.client, o.namespace, nodeAgentResource)
}

// nodeAgentSecret returns what the node agents read, with its checksum as annotation.
func (o *operation) nodeAgentSecret(ctx context.Context) (*corev1.Secret, error) {
	osc := o.operatingSystemConfig()
	if err := o.client.Get(ctx, client.ObjectKeyFromObject(osc), osc); err != nil {
		return nil, fmt.Errorf("reading OperatingSystemConfig %s: %w", client.ObjectKeyFromObject(osc), err)
	}
	secret, err := nodeagent.OperatingSystemConfigSecret(ctx, o.client, osc, NodeAgentSecretName, o.pool().Name, true)
	if err != nil {
		return nil, fmt.Errorf("making the secret of OperatingSystemConfig %s: %w", client.ObjectKeyFromObject(osc), err)
	}
	return secret, nil
}

// labelNodes puts every node into the worker pool. In Gardener the kubelet registers with these labels.
func (o *operation) labelNodes(ctx context.Context) error {
	nodes := &corev1.NodeList{}
	if err := o.client.List(ctx, nodes); err != nil {
		return fmt.Errorf("listing nodes: %w", err)
	}
	labels := gardenerutils.NodeLabelsForWorkerPool(o.pool(), false, NodeAgentSecretName, o.shoot.Spec.Region)
	for i := range nodes.Items {
		node := &nodes.Items[i]
		patch := client.MergeFrom(node.DeepCopy())
		maps.Copy(node.Labels, labels)
		if err := o.client.Patch(ctx, node, patch); err != nil {
			return fmt.Errorf("labelling node %s: %w", node.Name, err)
		}
	}
	return nil
}

// waitForNodes waits until every node has applied what deployNodeAgentSecret sent.
func (o *operation) waitForNodes(ctx context.Context) error {
	secret, err := o.nodeAgentSecret(ctx)
	if err != nil {
		return err
	}
	want := secret.Annotations[nodeagentconfigv1alpha1.AnnotationKeyChecksumDownloadedOperatingSystemConfig]
	return poll.Until(ctx, o.interval, nodesTimeout, func(ctx context.Context) error {
		nodes := &corev1.NodeList{}
		if err := o.client.List(ctx, nodes, client.MatchingLabels{v1beta1constants.LabelWorkerPool: o.pool().Name}); err != nil {
			return err
		}
		if len(nodes.Items) == 0 {
			return fmt.Errorf("worker pool %s has no nodes", o.pool().Name)
		}
		return outdatedNodes(nodes.Items, want)
	})
}

// outdatedNodes names the nodes that have not applied the configuration with the checksum, nil if there is none.
func outdatedNodes(nodes []corev1.Node, checksum string) error {
	var problems []error
	for _, node := range nodes {
		if got := node.Annotations[nodeagentconfigv1alpha1.AnnotationKeyChecksumAppliedOperatingSystemConfig]; got != checksum {
			problems = append(problems, fmt.Errorf("node %s has applied configuration %q, want %q", node.Name, abbreviate(got), abbreviate(checksum)))
		}
	}
	return errors.Join(problems...)
}

// abbreviate shortens a checksum to what a reader compares.
func abbreviate(checksum string) string { return checksum[:min(len(checksum), 12)] }

// resetNodes has the nodes apply a configuration that no extension has added to. Nodes that never got any are left.
func (o *operation) resetNodes(ctx context.Context) error {
	err := o.client.Get(ctx, client.ObjectKey{Namespace: o.namespace, Name: nodeAgentResource}, &resourcesv1alpha1.ManagedResource{})
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading ManagedResource %s/%s: %w", o.namespace, nodeAgentResource, err)
	}
	for _, do := range []func(context.Context) error{o.deployOperatingSystemConfig, o.deployNodeAgentSecret, o.waitForNodes} {
		if err := do(ctx); err != nil {
			return err
		}
	}
	return nil
}

// deleteNodeAgentSecret deletes what resetNodes has emptied. The node agents take no notice.
func (o *operation) deleteNodeAgentSecret(ctx context.Context) error {
	if err := managedresources.Delete(ctx, o.client, o.namespace, nodeAgentResource, true); err != nil {
		return fmt.Errorf("deleting ManagedResource %s/%s: %w", o.namespace, nodeAgentResource, err)
	}
	waitCtx, cancel := context.WithTimeout(ctx, managedResourceTimeout)
	defer cancel()
	if err := managedresources.WaitUntilDeleted(waitCtx, o.client, o.namespace, nodeAgentResource); err != nil {
		return err
	}
	if err := o.client.Delete(ctx, o.operatingSystemConfig()); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("deleting OperatingSystemConfig %s: %w", client.ObjectKeyFromObject(o.operatingSystemConfig()), err)
	}
	return nil
}
