// SPDX-License-Identifier: Apache-2.0

package gardener

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/poll"
)

// rolloutTimeout bounds the wait for pods. They start in seconds; a slow machine needs the rest.
const rolloutTimeout = 3 * time.Minute

// waitForRollout returns when the Deployment runs its newest pods and no others.
func waitForRollout(ctx context.Context, c client.Client, key client.ObjectKey) error {
	err := poll.Until(ctx, 500*time.Millisecond, rolloutTimeout, func(ctx context.Context) error {
		deployment := &appsv1.Deployment{}
		if err := c.Get(ctx, key, deployment); err != nil {
			return err
		}
		status, want := deployment.Status, *deployment.Spec.Replicas
		if status.ObservedGeneration < deployment.Generation || status.UpdatedReplicas < want || status.Replicas > want || status.AvailableReplicas < want {
			return errors.Join(fmt.Errorf("%d of %d pods are available", status.AvailableReplicas, want), podProblems(ctx, c, deployment))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("waiting for deployment %s: %w", key, err)
	}
	return nil
}

// podProblems says why the pods of a Deployment do not run, nil if nothing is known.
func podProblems(ctx context.Context, c client.Client, deployment *appsv1.Deployment) error {
	pods := &corev1.PodList{}
	if err := c.List(ctx, pods, client.InNamespace(deployment.Namespace), client.MatchingLabels(deployment.Spec.Selector.MatchLabels)); err != nil {
		return err
	}
	var problems []error
	for _, pod := range pods.Items {
		for _, condition := range pod.Status.Conditions {
			if condition.Type == corev1.PodScheduled && condition.Status != corev1.ConditionTrue {
				problems = append(problems, fmt.Errorf("pod %s: %s", pod.Name, condition.Message))
			}
		}
		for _, status := range pod.Status.ContainerStatuses {
			if waiting := status.State.Waiting; waiting != nil {
				problems = append(problems, fmt.Errorf("pod %s: %s", pod.Name, strings.TrimSpace(waiting.Reason+" "+waiting.Message)))
			}
			if last := status.LastTerminationState.Terminated; last != nil {
				problems = append(problems, fmt.Errorf("pod %s: its container ended before with code %d: %s", pod.Name, last.ExitCode, strings.TrimSpace(last.Reason+" "+last.Message)))
			}
		}
	}
	return errors.Join(problems...)
}
