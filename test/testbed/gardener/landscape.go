// SPDX-License-Identifier: Apache-2.0

package gardener

import (
	"context"
	"runtime"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	securityv1alpha1 "github.com/gardener/gardener/pkg/apis/security/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/poll"
)

const (
	// Local is the name of everything that a Shoot refers to and that is this machine: the infrastructure provider, its
	// region, machine type and machine image, the CloudProfile and the CredentialsBinding.
	Local = "local"
	// ProjectNamespace is the namespace of the only Project.
	ProjectNamespace = "garden-" + project

	project = "dev"
)

// applyLandscape writes what a Shoot refers to, and what says that its extensions exist. kubernetesVersion is that of
// the cluster, without "v": no other is on offer.
func applyLandscape(ctx context.Context, c client.Client, kubernetesVersion string) error {
	// kube-apiserver answers 503 for a moment after it has found a group available.
	return poll.Until(ctx, 500*time.Millisecond, apiServiceTimeout, func(ctx context.Context) error {
		for _, object := range landscape(kubernetesVersion) {
			err := apply(ctx, c, object)
			switch {
			case err == nil:
			case apierrors.IsServiceUnavailable(err) || meta.IsNoMatchError(err):
				return err
			default:
				return poll.Stop(err)
			}
		}
		return nil
	})
}

// landscape returns the objects in the order in which the API server accepts them.
func landscape(kubernetesVersion string) []client.Object {
	inProject := metav1.ObjectMeta{Namespace: ProjectNamespace, Name: Local}
	registration := func(name, extensionType string, kinds ...string) client.Object {
		registration := &gardencorev1beta1.ControllerRegistration{ObjectMeta: metav1.ObjectMeta{Name: name}}
		for _, kind := range kinds {
			registration.Spec.Resources = append(registration.Spec.Resources, gardencorev1beta1.ControllerResource{Kind: kind, Type: extensionType})
		}
		return registration
	}
	return []client.Object{
		registration("provider-local", Local, extensionsv1alpha1.ControlPlaneResource, extensionsv1alpha1.InfrastructureResource,
			extensionsv1alpha1.WorkerResource, extensionsv1alpha1.NetworkResource, extensionsv1alpha1.OperatingSystemConfigResource),
		// The chart is installed without it, so there is no deployment in it.
		registration("gardener-extension-registry-cache", "registry-cache", extensionsv1alpha1.ExtensionResource),
		&gardencorev1beta1.CloudProfile{
			ObjectMeta: metav1.ObjectMeta{Name: Local},
			Spec: gardencorev1beta1.CloudProfileSpec{
				Type:       Local,
				Kubernetes: gardencorev1beta1.KubernetesSettings{Versions: []gardencorev1beta1.ExpirableVersion{{Version: kubernetesVersion}}},
				MachineImages: []gardencorev1beta1.MachineImage{{Name: Local, Versions: []gardencorev1beta1.MachineImageVersion{{
					ExpirableVersion: gardencorev1beta1.ExpirableVersion{Version: "1.0.0"},
					CRI:              []gardencorev1beta1.CRI{{Name: gardencorev1beta1.CRINameContainerD}},
					Architectures:    []string{runtime.GOARCH},
				}}}},
				// How large the nodes are nobody asks.
				MachineTypes: []gardencorev1beta1.MachineType{{
					Name: Local, CPU: resource.MustParse("2"), GPU: resource.MustParse("0"), Memory: resource.MustParse("8Gi"),
					Usable: new(true), Architecture: new(runtime.GOARCH),
				}},
				Regions: []gardencorev1beta1.Region{{Name: Local}},
			},
		},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ProjectNamespace, Labels: map[string]string{
			v1beta1constants.GardenRole:  v1beta1constants.GardenRoleProject,
			v1beta1constants.ProjectName: project,
		}}},
		&gardencorev1beta1.Project{
			ObjectMeta: metav1.ObjectMeta{Name: project},
			Spec:       gardencorev1beta1.ProjectSpec{Namespace: new(ProjectNamespace)},
		},
		// The machine asks for no credentials; Gardener does.
		&corev1.Secret{ObjectMeta: inProject},
		&securityv1alpha1.CredentialsBinding{
			ObjectMeta:     inProject,
			Provider:       securityv1alpha1.CredentialsBindingProvider{Type: Local},
			CredentialsRef: corev1.ObjectReference{APIVersion: "v1", Kind: "Secret", Namespace: inProject.Namespace, Name: inProject.Name},
		},
	}
}
