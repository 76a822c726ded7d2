// SPDX-License-Identifier: Apache-2.0

package gardener

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"time"

	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	grm "github.com/gardener/gardener/pkg/component/gardener/resourcemanager"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// namespace is where Gardener's components run in a garden or seed cluster.
	namespace = v1beta1constants.GardenNamespace

	webhookPort = 10250
	healthPort  = 8081
	configKey   = "config.yaml"
	nobody      = int64(65532)
)

//go:embed resource-manager.yaml
var resourceManagerConfig string

// startResourceManager installs gardener-resource-manager for source and target in this cluster and waits until it is
// ready, then registers its webhooks.
func startResourceManager(ctx context.Context, c client.Client, image string) error {
	served, err := ensureCertificate(ctx, c, resourceManager, time.Now())
	if err != nil {
		return err
	}
	for _, object := range resourceManagerObjects(image, served) {
		if err := apply(ctx, c, object); err != nil {
			return err
		}
	}
	if err := waitForRollout(ctx, c, client.ObjectKey{Namespace: namespace, Name: resourceManager}); err != nil {
		return err
	}
	// Registered before the server is up, they would refuse everything they watch.
	for _, object := range webhookObjects(served.ca) {
		if err := apply(ctx, c, object); err != nil {
			return err
		}
	}
	return nil
}

// resourceManagerObjects are in the order in which they have to be applied.
func resourceManagerObjects(image string, served certificate) []client.Object {
	meta := metav1.ObjectMeta{Name: resourceManager, Namespace: namespace}
	global := metav1.ObjectMeta{Name: "registry-cache-testbed:" + resourceManager}
	selector := map[string]string{"app": resourceManager}

	serving := tlsSecret(resourceManager, served)
	config := &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{configKey: resourceManagerConfig}}
	sum := sha256.Sum256([]byte(resourceManagerConfig + string(served.cert)))

	deployment := &appsv1.Deployment{
		ObjectMeta: meta,
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(1)),
			Selector: &metav1.LabelSelector{MatchLabels: selector},
			// Two at once would both act: leader election is off.
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{
					Labels: map[string]string{
						"app": resourceManager,
						resourcesv1alpha1.HighAvailabilityConfigSkip: "true",
					},
					// Makes a new pod when the files it has read at its start have changed.
					Annotations: map[string]string{"checksum/config": hex.EncodeToString(sum[:])},
				},
				Spec: corev1.PodSpec{
					ServiceAccountName: resourceManager,
					PriorityClassName:  "system-cluster-critical",
					SecurityContext: &corev1.PodSecurityContext{
						RunAsNonRoot:   new(true),
						RunAsUser:      new(nobody),
						RunAsGroup:     new(nobody),
						FSGroup:        new(nobody),
						SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
					},
					Containers: []corev1.Container{{
						Name:            resourceManager,
						Image:           image,
						ImagePullPolicy: corev1.PullNever,
						Args:            []string{"--config=/etc/gardener-resource-manager/" + configKey},
						Ports: []corev1.ContainerPort{
							{Name: "webhooks", ContainerPort: webhookPort, Protocol: corev1.ProtocolTCP},
							{Name: "health", ContainerPort: healthPort, Protocol: corev1.ProtocolTCP},
						},
						ReadinessProbe: probe("/readyz"),
						LivenessProbe:  probe("/healthz"),
						Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
							corev1.ResourceCPU:    resource.MustParse("20m"),
							corev1.ResourceMemory: resource.MustParse("100Mi"),
						}},
						SecurityContext: &corev1.SecurityContext{
							AllowPrivilegeEscalation: new(false),
							ReadOnlyRootFilesystem:   new(true),
							Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
						},
						VolumeMounts: []corev1.VolumeMount{
							{Name: "config", MountPath: "/etc/gardener-resource-manager", ReadOnly: true},
							{Name: "certs", MountPath: "/certs", ReadOnly: true},
						},
					}},
					Volumes: []corev1.Volume{
						{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: config.Name}}}},
						{Name: "certs", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: serving.Name, DefaultMode: new(int32(0o440))}}},
					},
				},
			},
		},
	}

	objects := []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{v1beta1constants.GardenRole: v1beta1constants.GardenRoleGarden}}},
		// What gardenlet writes on a Shoot's kube-system: webhooks select namespaces by it.
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem, Labels: map[string]string{
			v1beta1constants.GardenerPurpose:                 metav1.NamespaceSystem,
			resourcesv1alpha1.HighAvailabilityConfigConsider: "true",
		}}},
	}
	// A resource manager may be asked to apply anything. In a Shoot Gardener gives it the same role.
	objects = append(objects, administrator(meta, global)...)
	return append(objects,
		config,
		serving,
		&corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
			Selector: selector,
			Ports:    []corev1.ServicePort{{Name: "webhooks", Port: 443, TargetPort: intstr.FromInt32(webhookPort), Protocol: corev1.ProtocolTCP}},
		}},
		deployment,
	)
}

func probe(path string) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:     corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(healthPort), Scheme: corev1.URISchemeHTTP}},
		PeriodSeconds:    5,
		TimeoutSeconds:   5,
		SuccessThreshold: 1,
		FailureThreshold: 6,
	}
}

// webhookObjects register those of Gardener's webhooks that decide what becomes of an extension's objects: the
// validation of Extensions and OperatingSystemConfigs in the seed, and the settings for high availability in the shoot.
func webhookObjects(ca []byte) []client.Object {
	clientConfig := func(_ *corev1.Secret, path string) admissionregistrationv1.WebhookClientConfig {
		return admissionregistrationv1.WebhookClientConfig{
			CABundle: ca,
			Service:  &admissionregistrationv1.ServiceReference{Namespace: namespace, Name: resourceManager, Path: new(path), Port: new(int32(443))},
		}
	}
	var validating []admissionregistrationv1.ValidatingWebhook
	for _, webhook := range grm.NewExtensionValidationValidatingWebhooks(nil, clientConfig) {
		switch webhook.Rules[0].Resources[0] {
		case "extensions", "operatingsystemconfigs":
			validating = append(validating, webhook)
		}
	}
	return []client.Object{
		&admissionregistrationv1.ValidatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: resourceManager},
			Webhooks:   validating,
		},
		&admissionregistrationv1.MutatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: resourceManager + "-shoot"},
			Webhooks: []admissionregistrationv1.MutatingWebhook{grm.NewHighAvailabilityConfigMutatingWebhook(
				&metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: metav1.NamespaceSystem}},
				&metav1.LabelSelector{MatchLabels: map[string]string{resourcesv1alpha1.ManagedBy: resourcesv1alpha1.GardenerManager}},
				nil, clientConfig,
			)},
		},
	}
}
