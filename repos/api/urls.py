from django.urls import path
from rest_framework.routers import SimpleRouter

from repos.api import views
from repos.api.doctor import DoctorView

router = SimpleRouter()
router.register("gitrepos", views.GitRepoViewSet)
router.register("clusters", views.ClusterViewSet)
router.register("clustergroups", views.ClusterGroupViewSet)
router.register("credentials", views.CredentialViewSet)

urlpatterns = [*router.urls, path("doctor/", DoctorView.as_view(), name="doctor")]
