// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/Masterminds/semver/v3"
	v1beta1helper "github.com/gardener/gardener/pkg/api/core/v1beta1/helper"
	nodeagentconfigv1alpha1 "github.com/gardener/gardener/pkg/apis/config/nodeagent/v1alpha1"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	gardenerutils "github.com/gardener/gardener/pkg/utils/gardener"
	"github.com/gardener/gardener/pkg/utils/kubernetes/health"
	healthchecker "github.com/gardener/gardener/pkg/utils/kubernetes/health/checker"
	"github.com/go-logr/logr"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// checks are those of one Shoot.
type checks struct {
	*healthchecker.HealthChecker
	*care
	log   logr.Logger
	shoot *gardencorev1beta1.Shoot
}

func (c *checks) failed(condition gardencorev1beta1.Condition, reason, message string) *gardencorev1beta1.Condition {
	return new(v1beta1helper.FailedCondition(c.clock, c.shoot.Status.LastOperation, conditionThresholds(), condition, reason, message))
}

func (c *checks) healthy(condition gardencorev1beta1.Condition, reason, message string) *gardencorev1beta1.Condition {
	return new(v1beta1helper.UpdatedConditionWithClock(c.clock, condition, gardencorev1beta1.ConditionTrue, reason, message))
}

func (c *checks) apiServer(ctx context.Context, condition gardencorev1beta1.Condition) (*gardencorev1beta1.Condition, error) {
	return new(health.CheckAPIServerAvailability(ctx, c.clock, c.log, condition, c.shootAPIServer, func(reason, message string) gardencorev1beta1.Condition {
		return *c.failed(condition, reason, message)
	})), nil
}

// controlPlane looks at what extensions run in the seed for the Shoot.
func (c *checks) controlPlane(ctx context.Context, condition gardencorev1beta1.Condition) (*gardencorev1beta1.Condition, error) {
	failed, err := c.extensions(ctx, condition, func(resource resourcesv1alpha1.ManagedResource) bool {
		label := resource.Labels[v1beta1constants.LabelCareConditionType]
		return resource.Spec.Class != nil && (label == "" || label == string(condition.Type))
	})
	if failed != nil || err != nil {
		return failed, err
	}
	return c.healthy(condition, "ControlPlaneRunning", "All control plane components are healthy."), nil
}

// systemComponents looks at what extensions have put into the Shoot.
func (c *checks) systemComponents(ctx context.Context, condition gardencorev1beta1.Condition) (*gardencorev1beta1.Condition, error) {
	failed, err := c.extensions(ctx, condition, func(resource resourcesv1alpha1.ManagedResource) bool {
		return resource.Spec.Class == nil || resource.Labels[v1beta1constants.LabelCareConditionType] == string(condition.Type)
	})
	if failed != nil || err != nil {
		return failed, err
	}
	return c.healthy(condition, "SystemComponentsRunning", "All system components are healthy."), nil
}

// extensions looks at the conditions of that type that extensions report, and at the ManagedResources that count for it.
func (c *checks) extensions(ctx context.Context, condition gardencorev1beta1.Condition, counts func(resourcesv1alpha1.ManagedResource) bool) (*gardencorev1beta1.Condition, error) {
	inSeed := client.InNamespace(c.shoot.Status.TechnicalID)
	extensions := &extensionsv1alpha1.ExtensionList{}
	if err := c.client.List(ctx, extensions, inSeed); err != nil {
		return nil, fmt.Errorf("listing Extensions: %w", err)
	}
	var reported []healthchecker.ExtensionCondition
	for _, extension := range extensions.Items {
		for _, own := range extension.Status.Conditions {
			if own.Type == condition.Type {
				reported = append(reported, healthchecker.ExtensionCondition{Condition: own, ExtensionType: extension.Spec.Type, ExtensionName: extension.Name, ExtensionNamespace: extension.Namespace})
			}
		}
	}
	if failed := c.CheckExtensionCondition(condition, reported, nil); failed != nil {
		return failed, nil
	}
	resources := &resourcesv1alpha1.ManagedResourceList{}
	if err := c.client.List(ctx, resources, inSeed); err != nil {
		return nil, fmt.Errorf("listing ManagedResources: %w", err)
	}
	return c.CheckManagedResources(condition, resources.Items, counts, &metav1.Duration{Duration: progressingThreshold}, nil), nil
}

// nodes looks at the nodes, at the configuration that they have applied, and at their agents.
func (c *checks) nodes(ctx context.Context, condition gardencorev1beta1.Condition) (*gardencorev1beta1.Condition, error) {
	if failed, err := c.extensions(ctx, condition, func(resource resourcesv1alpha1.ManagedResource) bool {
		return resource.Labels[v1beta1constants.LabelCareConditionType] == string(condition.Type)
	}); failed != nil || err != nil {
		return failed, err
	}
	pool := c.shoot.Spec.Provider.Workers[0]
	list := &corev1.NodeList{}
	if err := c.client.List(ctx, list, client.MatchingLabels{v1beta1constants.LabelWorkerPool: pool.Name}); err != nil {
		return nil, fmt.Errorf("listing nodes: %w", err)
	}
	version, err := semver.NewVersion(c.shoot.Spec.Kubernetes.Version)
	if err != nil {
		return nil, fmt.Errorf("parsing spec.kubernetes.version: %w", err)
	}
	if failed, _ := c.CheckNodes(condition, list.Items, pool.Name, version, nil); failed != nil {
		return failed, nil
	}
	if len(list.Items) < int(pool.Minimum) {
		return c.failed(condition, "MissingNodes", fmt.Sprintf("Not enough worker nodes registered in worker pool %q to meet minimum desired machine count. (%d/%d).", pool.Name, len(list.Items), pool.Minimum)), nil
	}
	secret := &corev1.Secret{}
	if err := c.client.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: NodeAgentSecretName}, secret); err != nil {
		return nil, fmt.Errorf("reading the configuration of the nodes: %w", err)
	}
	if err := outdatedNodes(list.Items, secret.Annotations[nodeagentconfigv1alpha1.AnnotationKeyChecksumDownloadedOperatingSystemConfig]); err != nil {
		return c.failed(condition, "OperatingSystemConfigOutdated", err.Error()), nil
	}
	for _, node := range list.Items {
		problem, err := c.agentProblem(ctx, node.Name)
		if err != nil {
			return nil, err
		}
		if problem != "" {
			return c.failed(condition, "NodeAgentUnhealthy", problem), nil
		}
	}
	if problems := unitProblems(list.Items); problems != "" {
		return c.failed(condition, "SystemdUnitsNotReady", problems), nil
	}
	return c.healthy(condition, "EveryNodeReady", "All nodes are ready."), nil
}

// agentProblem says why the agent of the node does not run, "" if it does.
func (c *checks) agentProblem(ctx context.Context, node string) (string, error) {
	lease := &coordinationv1.Lease{}
	err := c.client.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: gardenerutils.NodeAgentLeaseName(node)}, lease)
	if apierrors.IsNotFound(err) {
		return fmt.Sprintf("gardener-node-agent is not running on node %q", node), nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the lease of the node agent on node %s: %w", node, err)
	}
	renewed, lasts := lease.Spec.RenewTime, lease.Spec.LeaseDurationSeconds
	if renewed == nil || lasts == nil || renewed.Add(time.Duration(*lasts)*time.Second).Before(c.clock.Now()) {
		return fmt.Sprintf("gardener-node-agent stopped running on node %q", node), nil
	}
	return "", nil
}

// unitProblems repeats what the agents say about units that do not run.
func unitProblems(nodes []corev1.Node) string {
	var problems []string
	for _, node := range nodes {
		for _, condition := range node.Status.Conditions {
			if condition.Type == nodeagentconfigv1alpha1.ConditionTypeSystemdUnitsReady && condition.Status != corev1.ConditionTrue {
				problems = append(problems, fmt.Sprintf("node %q: %s", node.Name, condition.Message))
			}
		}
	}
	return strings.Join(problems, "; ")
}
