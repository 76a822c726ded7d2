// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"github.com/gardener/gardener/pkg/extensions"
	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func TestReconcileGoesInTheGardenletsOrder(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	writes := s.writesSince(t, func() { s.reconcile(t, documented) })
	want := []string{
		"write Cluster " + shootNamespace,
		"write Namespace " + shootNamespace,
		"write Secret gardener-internal",
		"write Extension registry-cache",
		"write OperatingSystemConfig gardener-node-agent-testbed-original",
		"write Secret managedresource-shoot-gardener-node-agent",
		"write ManagedResource shoot-gardener-node-agent",
		"write Cluster " + shootNamespace,
	}
	if diff := cmp.Diff(want, writes); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}

	namespace := &corev1.Namespace{}
	if err := s.Get(t.Context(), client.ObjectKey{Name: shootNamespace}, namespace); err != nil {
		t.Fatal(err)
	}
	for label, value := range map[string]string{"gardener.cloud/role": "shoot", "extensions.gardener.cloud/registry-cache": "true"} {
		if namespace.Labels[label] != value {
			t.Errorf("label %s of the namespace is %q, want %q", label, namespace.Labels[label], value)
		}
	}
	shoot := s.shoot(t, "crazy-botany")
	if !slices.Contains(shoot.Finalizers, "gardener") {
		t.Errorf("finalizers are %q", shoot.Finalizers)
	}
	cluster, err := extensions.GetCluster(t.Context(), s, shootNamespace)
	if err != nil {
		t.Fatal(err)
	}
	for where, status := range map[string]gardencorev1beta1.ShootStatus{"garden": shoot.Status, "Cluster": cluster.Shoot.Status} {
		if status.TechnicalID != shootNamespace || status.UID == "" || status.ObservedGeneration != 1 || status.Gardener.Version != "v1.2.3" ||
			status.LastOperation.Type != "Create" || status.LastOperation.State != "Succeeded" || status.LastOperation.Progress != 100 || status.LastErrors != nil {
			t.Errorf("status of the Shoot in the %s is %+v", where, status)
		}
	}
	if cluster.Seed == nil || cluster.CloudProfile == nil || cluster.Shoot.Spec.Kubernetes.Version != "1.34.4" || *cluster.Shoot.Spec.SeedName != "local" {
		t.Errorf("the Cluster is incomplete: %+v", cluster)
	}
	for _, node := range []string{"control-plane", "worker"} {
		if got := s.appliedOn(t, node); !strings.Contains(got, "/from/the/webhook") || !strings.Contains(got, "sandboxImage: pause") {
			t.Errorf("node %s has applied\n%s", node, got)
		}
	}
}

func TestReconcileAgainKeepsTheIdentity(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	s.reconcile(t, documented)
	first := s.shoot(t, "crazy-botany").Status
	s.reconcile(t, documented)
	second := s.shoot(t, "crazy-botany").Status
	if first.UID != second.UID || second.LastOperation.Type != gardencorev1beta1.LastOperationTypeReconcile || second.ObservedGeneration != 2 {
		t.Errorf("the status is %+v after %+v", second, first)
	}
}

// An extension that leaves the Shoot is deleted before the nodes learn of it.
func TestReconcileDeletesStaleExtensions(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	s.reconcile(t, documented)
	without, _, _ := strings.Cut(documented, "  extensions:")
	writes := s.writesSince(t, func() { s.reconcile(t, without) })
	deleted := slices.Index(writes, "delete Extension registry-cache")
	configured := slices.Index(writes, "write OperatingSystemConfig gardener-node-agent-testbed-original")
	if deleted < 0 || configured < deleted {
		t.Errorf("writes are %q, want the Extension deleted and the OperatingSystemConfig written after it", writes)
	}
	if got := s.appliedOn(t, "worker"); strings.Contains(got, "/from/the/webhook") {
		t.Errorf("the node still has\n%s", got)
	}
	namespace := &corev1.Namespace{}
	if err := s.Get(t.Context(), client.ObjectKey{Name: shootNamespace}, namespace); err != nil {
		t.Fatal(err)
	}
	if _, ok := namespace.Labels["extensions.gardener.cloud/registry-cache"]; ok {
		t.Error("the namespace still has the label of the extension, so its webhooks would be called")
	}
}

func TestDisabledExtensionIsNotDeployed(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	disabled := strings.Replace(documented, "- type: registry-cache", "- type: registry-cache\n    disabled: true", 1)
	writes := s.writesSince(t, func() { s.reconcile(t, disabled) })
	if slices.Contains(writes, "write Extension registry-cache") {
		t.Errorf("writes are %q", writes)
	}
}

func TestHibernationLeavesTheNodesOut(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	s.reconcile(t, documented)
	disabled := strings.Replace(documented, "- type: registry-cache", "- type: registry-cache\n    disabled: true", 1)
	writes := s.writesSince(t, func() { s.reconcile(t, disabled+"  hibernation: {enabled: true}\n") })
	want := []string{
		"write Cluster " + shootNamespace,
		"write Namespace " + shootNamespace,
		"write Secret gardener-internal",
		"delete Extension registry-cache",
		"write OperatingSystemConfig gardener-node-agent-testbed-original",
		"write Cluster " + shootNamespace,
	}
	writes = slices.DeleteFunc(writes, func(write string) bool { return write == "write Extension registry-cache" }) // the confirmation
	if diff := cmp.Diff(want, writes); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	if got := s.appliedOn(t, "worker"); !strings.Contains(got, "/from/the/webhook") {
		t.Errorf("a node has changed while the Shoot is hibernated:\n%s", got)
	}
	if status := s.shoot(t, "crazy-botany").Status; !status.IsHibernated || status.LastOperation.State != "Succeeded" {
		t.Errorf("status is %+v", status)
	}

	s.reconcile(t, disabled)
	if got := s.appliedOn(t, "worker"); strings.Contains(got, "/from/the/webhook") {
		t.Errorf("after waking up a node still has\n%s", got)
	}
	if status := s.shoot(t, "crazy-botany").Status; status.IsHibernated {
		t.Errorf("status is %+v", status)
	}
}

func TestRefusedConfigurationKeepsTheNodesAsTheyAre(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	s.reconcile(t, documented)
	before := s.appliedOn(t, "worker")

	const complaint = `providerConfig.caches[0].upstream: Invalid value: "https://docker.io": must not have a scheme`
	s.refuse = &gardencorev1beta1.LastError{Description: complaint, Codes: []gardencorev1beta1.ErrorCode{gardencorev1beta1.ErrorConfigurationProblem}}
	s.write(t, documented)
	var err error
	start := time.Now()
	writes := s.writesSince(t, func() { err = s.operate(t.Context(), "crazy-botany") })
	if err == nil || !strings.Contains(err.Error(), complaint) {
		t.Errorf("error is %v\nwant it to contain %s", err, complaint)
	}
	if took := time.Since(start); took > failureGrace/2 {
		t.Errorf("it took %s to report an error that does not pass", took)
	}
	for _, write := range writes {
		if strings.Contains(write, "OperatingSystemConfig") || strings.Contains(write, "ManagedResource") {
			t.Errorf("%q after a refused configuration", write)
		}
	}
	if got := s.appliedOn(t, "worker"); got != before {
		t.Error("the node has changed")
	}
	cluster, err := extensions.GetCluster(t.Context(), s, shootNamespace)
	if err != nil {
		t.Fatal(err)
	}
	for where, status := range map[string]gardencorev1beta1.ShootStatus{"garden": s.shoot(t, "crazy-botany").Status, "Cluster": cluster.Shoot.Status} {
		if status.LastOperation.State != "Failed" || len(status.LastErrors) != 1 || !strings.Contains(status.LastErrors[0].Description, complaint) ||
			!slices.Equal(status.LastErrors[0].Codes, s.refuse.Codes) {
			t.Errorf("status of the Shoot in the %s is %+v", where, status)
		}
	}
	if writes := s.writesSince(t, func() { err = s.operate(t.Context(), "crazy-botany") }); err != nil || len(writes) > 0 {
		t.Errorf("what only the owner can correct was tried again: %q, %v", writes, err)
	}

	s.refuse = nil
	s.reconcile(t, documented)
	if status := s.shoot(t, "crazy-botany").Status; status.LastOperation.State != "Succeeded" || status.LastErrors != nil {
		t.Errorf("status is %+v", status)
	}
}

func TestSecondShootIsRefused(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	s.reconcile(t, documented)
	s.write(t, strings.Replace(documented, "crazy-botany", "other", 1))
	var err error
	writes := s.writesSince(t, func() { err = s.operate(t.Context(), "other") })
	if err == nil || !strings.Contains(err.Error(), shootNamespace) {
		t.Errorf("error is %v, want one that names %s", err, shootNamespace)
	}
	if len(writes) > 0 {
		t.Errorf("writes are %q, want none", writes)
	}
	other := s.shoot(t, "other")
	if status := other.Status; status.LastOperation.State != "Error" || !strings.Contains(status.LastErrors[0].Description, shootNamespace) {
		t.Errorf("status is %+v", status)
	}

	if err := s.Delete(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if err := s.operate(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	if err := s.Get(t.Context(), client.ObjectKeyFromObject(other), other); !apierrors.IsNotFound(err) {
		t.Errorf("the second Shoot still exists: %v", err)
	}
	if _, err := extensions.GetCluster(t.Context(), s, shootNamespace); err != nil {
		t.Errorf("the Cluster of the first Shoot: %v", err)
	}
}

func TestShootThatTheClusterCannotBeIsRefused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ manifest, want string }{
		"two pools":            {strings.Replace(documented, "    workers:\n", "    workers:\n    - {name: other, minimum: 1, maximum: 1, machine: {type: local}}\n", 1), "spec.provider.workers"},
		"referenced ConfigMap": {documented + "  resources: [{name: a, resourceRef: {apiVersion: v1, kind: ConfigMap, name: a}}]\n", `spec.resources[0].resourceRef.kind: Unsupported value: "ConfigMap": supported values: "Secret"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSeed(t)
			s.write(t, tc.manifest)
			if err := s.operate(t.Context(), "crazy-botany"); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v\nwant it to contain %s", err, tc.want)
			}
			if status := s.shoot(t, "crazy-botany").Status; status.LastOperation.State != "Failed" {
				t.Errorf("status is %+v", status)
			}
		})
	}
}

func TestSilentNodeIsNamed(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	s.agentless = "worker"
	s.write(t, documented)
	process, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := s.reconciler()
	r.client = &cancelOnNodes{Client: s, cancel: cancel}
	o, err := r.newOperation(t.Context(), logr.Discard(), s.shoot(t, "crazy-botany"))
	if err != nil {
		t.Fatal(err)
	}
	err = o.reconcile(process)
	if err == nil || !strings.Contains(err.Error(), "node worker has applied configuration") {
		t.Errorf("error is %v", err)
	}
	if err != nil && strings.Contains(err.Error(), "control-plane") {
		t.Errorf("error %v blames a node that is up to date", err)
	}
	if status := s.shoot(t, "crazy-botany").Status; status.LastOperation.State != "Processing" || status.LastOperation.Description != WaitForNodes {
		t.Errorf("an interrupted operation has left the status %+v", status)
	}
}

// cancelOnNodes ends the process once the nodes are being waited for.
type cancelOnNodes struct {
	client.Client
	cancel func()
}

func (c *cancelOnNodes) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	err := c.Client.List(ctx, list, options...)
	if _, ok := list.(*corev1.NodeList); ok && len(options) > 0 {
		c.cancel()
	}
	return err
}

func TestReferencedSecretsAreCopied(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	manifest := documented + "  resources: [{name: credentials, resourceRef: {apiVersion: v1, kind: Secret, name: docker}}]\n"
	s.write(t, manifest)
	if err := s.operate(t.Context(), "crazy-botany"); err == nil || !strings.Contains(err.Error(), "spec.resources[0].resourceRef: reading secret garden-dev/docker") {
		t.Errorf("error for a missing secret is %v", err)
	}
	if status := s.shoot(t, "crazy-botany").Status; status.LastOperation.State != "Error" {
		t.Errorf("status is %+v, want an error that is tried again", status)
	}
	if err := s.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "garden-dev", Name: "docker"}, Immutable: new(true), Data: map[string][]byte{"username": []byte("u")}}); err != nil {
		t.Fatal(err)
	}
	if err := s.operate(t.Context(), "crazy-botany"); err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{}
	if err := s.Get(t.Context(), client.ObjectKey{Namespace: shootNamespace, Name: "ref-docker"}, secret); err != nil {
		t.Fatal(err)
	}
	if string(secret.Data["username"]) != "u" || secret.Immutable == nil || !*secret.Immutable {
		t.Errorf("copy is %v, immutable %v", secret.Data, secret.Immutable)
	}
}

// What somebody else has written into the status, such as the rotation of a CA, stays and gets to the extensions.
func TestStatusOfOthersIsKept(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	s.reconcile(t, documented)
	shoot := s.shoot(t, "crazy-botany")
	shoot.Status.Credentials = &gardencorev1beta1.ShootCredentials{Rotation: &gardencorev1beta1.ShootCredentialsRotation{
		CertificateAuthorities: &gardencorev1beta1.CARotation{Phase: gardencorev1beta1.RotationPreparing},
	}}
	shoot.Status.Conditions = []gardencorev1beta1.Condition{{Type: "SomebodyElses", Status: gardencorev1beta1.ConditionTrue}}
	if err := s.Status().Update(t.Context(), shoot); err != nil {
		t.Fatal(err)
	}
	s.reconcile(t, documented)
	cluster, err := extensions.GetCluster(t.Context(), s, shootNamespace)
	if err != nil {
		t.Fatal(err)
	}
	for where, status := range map[string]gardencorev1beta1.ShootStatus{"garden": s.shoot(t, "crazy-botany").Status, "Cluster": cluster.Shoot.Status} {
		if status.Credentials == nil || status.Credentials.Rotation.CertificateAuthorities.Phase != gardencorev1beta1.RotationPreparing || len(status.Conditions) != 1 {
			t.Errorf("status in the %s is %+v", where, status)
		}
	}
}

func TestDeleteTakesTheConfigurationBack(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	s.reconcile(t, documented)
	shoot := s.shoot(t, "crazy-botany")
	if err := s.Delete(t.Context(), shoot); err != nil {
		t.Fatal(err)
	}
	// Somebody else writes at the same time, as whoever cares for the conditions does.
	s.meddle = func() {
		other := s.shoot(t, "crazy-botany")
		other.Status.Conditions = []gardencorev1beta1.Condition{{Type: "SomebodyElses", Status: gardencorev1beta1.ConditionTrue}}
		if err := s.Status().Update(t.Context(), other); err != nil {
			t.Error(err)
		}
	}
	writes := s.writesSince(t, func() {
		if err := s.operate(t.Context(), "crazy-botany"); err != nil {
			t.Fatal(err)
		}
	})
	if s.meddle != nil {
		t.Error("nobody has written at the same time")
	}
	want := []string{
		"write Cluster " + shootNamespace,
		"write Extension registry-cache", // the confirmation of the deletion
		"delete Extension registry-cache",
		"write OperatingSystemConfig gardener-node-agent-testbed-original",
		"write Secret managedresource-shoot-gardener-node-agent",
		"write ManagedResource shoot-gardener-node-agent",
		"delete ManagedResource shoot-gardener-node-agent",
		"delete OperatingSystemConfig gardener-node-agent-testbed-original",
		"delete Namespace " + shootNamespace,
		"delete Cluster " + shootNamespace,
	}
	writes = slices.DeleteFunc(writes, func(write string) bool {
		return strings.HasPrefix(write, "delete Secret") // of the ManagedResource, whose name has a hash
	})
	if diff := cmp.Diff(want, writes); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	if got := s.appliedOn(t, "worker"); strings.Contains(got, "/from/the/webhook") {
		t.Errorf("the node still has\n%s", got)
	}
	if err := s.Get(t.Context(), client.ObjectKeyFromObject(shoot), shoot); !apierrors.IsNotFound(err) {
		t.Errorf("the Shoot still exists: %v", err)
	}
	if err := s.operate(t.Context(), "crazy-botany"); err != nil {
		t.Errorf("looking for a Shoot that is gone: %v", err)
	}
	s.reconcile(t, documented)
}
